"""Speed of this machine, as the time of training steps on random tokens and of preparing a made-up text.

Input: sizes of a model. Output: seconds a step; a `MachineSpeed` beside the machine on which `tables` was measured.
Must not know: the user's texts, plans.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from meari.bundle_format.names import TokenizerKind
from meari.models.choices import Device, TrainingPrecision
from meari.models.config import ModelConfig, TokenizerConfig, TrainingConfig
from meari.models.families import build_model
from meari.models.language_model import LanguageModel
from meari.models.planning.tables import (
    LARGE_PROBE,
    SMALL_PROBE,
    TEXT_PROBE_SECONDS,
    MachineSpeed,
    Probe,
    step_seconds_of,
)
from meari.models.text.tokenizer import train_tokenizer
from meari.models.training.optimizer import build_optimizer, trained_parameters
from meari.models.training.process import choose_device, fast_torch

ROUNDS = 3
MIN_GAIN = 1.25  # of twice the threads, below which they are left to others
MAX_THREADS = 8
LETTERS = "abcdefghijklmnop가나다라마바사아"

Clock = Callable[[], float]


def measure_speed(clock: Clock = time.perf_counter, device: torch.device | None = None) -> MachineSpeed:
    """Time a few steps, two seconds on a usual CPU."""
    place = device or choose_device(Device.AUTO)
    small, large = SMALL_PROBE, LARGE_PROBE
    training = TrainingConfig(steps=1)
    precision, seconds = _faster_precision(small, training, place, clock)
    training = replace(training, precision=precision)
    large_seconds = step_seconds(large.model, large.vocabulary_size, training, device=place, clock=clock)
    threads = 0
    if place.type == "cpu":
        threads, large_seconds = _best_threads(large, training, large_seconds, clock)
    text = TEXT_PROBE_SECONDS / text_seconds(clock)
    return MachineSpeed(
        step_seconds_of(small) / seconds, step_seconds_of(large) / large_seconds, precision, threads, text
    )


def _faster_precision(
    probe: Probe, training: TrainingConfig, device: torch.device, clock: Clock
) -> tuple[TrainingPrecision, float]:
    times = {
        precision: step_seconds(
            probe.model, probe.vocabulary_size, replace(training, precision=precision), device=device, clock=clock
        )
        for precision in TrainingPrecision
    }
    fastest = min(times, key=lambda precision: times[precision])
    return fastest, times[fastest]


def _best_threads(probe: Probe, training: TrainingConfig, seconds: float, clock: Clock) -> tuple[int, float]:
    """Double the threads while the step gains by it; `seconds` is that of one thread.

    Threads that wait for one another on a busy machine take many times as long, so their steps get no more time than
    those of fewer threads.
    """
    threads = 1
    while 2 * threads <= min(MAX_THREADS, len(os.sched_getaffinity(0))):
        found = step_seconds(
            probe.model,
            probe.vocabulary_size,
            training,
            threads=2 * threads,
            longest=(1 + ROUNDS) * seconds,
            clock=clock,
        )
        if found * MIN_GAIN > seconds:
            break
        threads, seconds = 2 * threads, found
    return threads, seconds


def text_seconds(clock: Clock = time.perf_counter) -> float:
    """Return the time of learning byte pairs from a text of some 250 kB and of encoding it."""
    chance = random.Random(0)  # noqa: S311  (no secret: the same text each time)
    words = ["".join(chance.choices(LETTERS, k=chance.randint(2, 9))) for _ in range(4_000)]
    text = [" ".join(chance.choices(words, k=12)) for _ in range(3_500)]
    began = clock()
    train_tokenizer(text, TokenizerConfig(kind=TokenizerKind.BPE, vocabulary_size=500)).encode_arrays(text)
    return max(clock() - began, 1e-6)


def step_seconds(
    model_config: ModelConfig,
    vocabulary_size: int,
    training: TrainingConfig,
    *,
    device: torch.device | None = None,
    threads: int = 1,
    rounds: int = ROUNDS,
    longest: float = math.inf,
    clock: Clock = time.perf_counter,
) -> float:
    """Return the shortest of the times of `rounds` training steps after one that is not counted.

    longest   seconds after which no other step begins
    """
    place = device or torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    shape = (training.batch_size, training.chunk_length + 1)
    tokens = torch.randint(vocabulary_size, shape, generator=generator).to(place)
    with fast_torch(threads):
        model = build_model(model_config, vocabulary_size, seed=1).to(place)
        ids = np.arange(4096, dtype=np.uint32) % vocabulary_size
        optimizer = build_optimizer(model, training, ids)
        step = _Step(model, optimizer, tokens, training)
        times: list[float] = []
        while len(times) <= rounds and sum(times) < longest:
            began = clock()
            step()
            times.append(clock() - began)
    return max(min(times[1:] or times), 1e-6)


@dataclass(frozen=True)
class _Step:
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    tokens: torch.Tensor
    training: TrainingConfig

    def __call__(self) -> None:
        """Take a step as the trainer does, without its bookkeeping."""
        model, device = self.model, self.tokens.device
        uses_bfloat16 = self.training.precision is TrainingPrecision.BFLOAT16
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16):
            hidden, _ = model(self.tokens[:, :-1], model.initial_state(len(self.tokens)))
            loss = model.loss(hidden, self.tokens[:, 1:])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained_parameters(model), self.training.clip_norm)
        self.optimizer.step()
        loss.item()
