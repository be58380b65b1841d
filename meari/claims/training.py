"""Training in memory on a budget, without run folder or resuming: truncated back-propagation through time, or one pass.

Input: a fresh model, token ids, a plan, a budget. Output: the trained model, and its losses on the way. Must not know:
run folders, claims.

One step: take a chunk of every stream, zero the states of the streams that start afresh, run forward, take the mean
cross-entropy in nats, run backward within the chunk, clip the gradient's norm, move the weights, carry the states on.
Streams start afresh by chance at random places, so that every model has seen texts whose beginning is cut off.

One pass: the readout of an echo state network from one linear system, without a gradient. The last part of the tokens
calibrates the scores of the regression into probabilities (`meari.models.readout.ridge`).
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from meari.bundle_format.names import Family
from meari.claims.evaluation import held_out_loss
from meari.claims.sizes import Sizes
from meari.claims.text import Ids
from meari.models.cells.esn import EchoStateNetwork
from meari.models.config import TrainingConfig
from meari.models.language_model import LanguageModel, State
from meari.models.readout.ridge import RidgeSums, calibrate
from meari.models.training.optimizer import build_optimizer, learning_rate, set_learning_rate, trained_parameters

Clock = Callable[[], float]
LEARNING_RATES = {Family.RNN: 2e-3, Family.GRU: 4e-3, Family.LSTM: 5e-3, Family.ESN: 7e-3}
WEIGHT_DECAYS = {Family.RNN: 0.05, Family.GRU: 0.05, Family.LSTM: 0.05, Family.ESN: 0.1}
CLIP_NORMS = {Family.RNN: 1.0, Family.GRU: 1.0, Family.LSTM: 1.0, Family.ESN: 10.0}
WARMUP_SHARE = 0.05
RESTART_SHARE = 0.02
MEMORISED_LOSS = 0.05  # nats a token
RIDGE = 1.0
CALIBRATION_SHARE = 0.1


class OutOfTime(Exception):
    """End of the budget before there was anything to judge a claim by."""


@dataclass(frozen=True)
class Budget:
    """Time that may be spent.

    end   when the time is up, on the clock's scale, in seconds
    """

    end: float
    clock: Clock

    @staticmethod
    def of(seconds: float, clock: Clock) -> "Budget":
        """Return a budget that begins now."""
        return Budget(clock() + seconds, clock)

    @property
    def seconds_left(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.end - self.clock())

    @property
    def is_spent(self) -> bool:
        return self.seconds_left <= 0

    def part(self, share: float) -> "Budget":
        """Return a budget of this share of the remaining time; what a part does not need stays with the whole."""
        return Budget(self.clock() + share * self.seconds_left, self.clock)


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of a training.

    evaluate_every   in steps, 0: only at the end

    Every training runs its whole schedule, and the weights at its end are measured: those from before it were made at a
    rate that was still high.
    """

    steps: int
    batch_size: int
    chunk_length: int
    evaluate_every: int = 0

    @staticmethod
    def of(sizes: Sizes) -> "TrainingPlan":
        """Return the plan that all claims share."""
        return TrainingPlan(sizes.steps, sizes.batch_size, sizes.chunk_length, sizes.evaluate_every)


@dataclass(frozen=True)
class TrainingPoint:
    """Measurement after a step: validation loss in nats a token, CPU-seconds of training until then."""

    step: int
    loss: float
    cpu_seconds: float


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in evaluation mode.

    cpu_seconds   of the training steps, the measuring of a reservoir's states at the first among them; no evaluations
    is_cut        the budget ended before the training did
    """

    model: LanguageModel
    points: tuple[TrainingPoint, ...]
    cpu_seconds: float
    steps: int
    is_cut: bool

    @property
    def loss(self) -> float:
        """Validation loss at the end; infinite if nothing was evaluated."""
        return self.points[-1].loss if self.points else math.inf

    @property
    def rise(self) -> float:
        """Rise of the validation loss from its lowest value to the end."""
        return self.loss - min(point.loss for point in self.points) if self.points else 0.0


class Streams:
    """Cursors into a row of token ids, evenly spread, that return to the row's beginning at its end.

    ids      int64 [num_tokens], longer than `length`
    """

    def __init__(self, ids: Ids, batch_size: int, length: int, generator: np.random.Generator) -> None:
        self.length = min(length, len(ids) - 1)
        self._ids = ids
        self._generator = generator
        self._last = len(ids) - 1 - self.length
        self._cursors = np.arange(batch_size) * self._last // batch_size

    def __len__(self) -> int:
        return len(self._cursors)

    def next_chunk(self) -> tuple[Tensor, Tensor]:
        """Return tokens int64 [batch, length + 1], and the streams that start afresh, bool [batch]."""
        fresh = self._generator.random(len(self._cursors)) < RESTART_SHARE
        self._cursors[fresh] = self._generator.integers(0, self._last + 1, int(fresh.sum()))
        is_past = self._cursors > self._last
        self._cursors[is_past] = 0
        rows = self._ids[self._cursors[:, None] + np.arange(self.length + 1)]
        self._cursors = self._cursors + self.length
        return torch.from_numpy(rows), torch.from_numpy(fresh | is_past)


def train(
    model: LanguageModel, ids: Ids, validation: Ids, plan: TrainingPlan, budget: Budget, seed: int
) -> TrainedModel:
    """Train in place until the plan or the budget ends."""
    family = Family(model.family)
    config = training_config(family, plan)
    torch.manual_seed(seed)
    optimizer = build_optimizer(model, config, ids)
    streams = Streams(ids, plan.batch_size, plan.chunk_length, np.random.default_rng(seed))
    state = model.initial_state(plan.batch_size)
    points: list[TrainingPoint] = []
    step, spent = 0, 0.0
    model.train()
    while step < plan.steps and not budget.is_spent:
        began = time.process_time()
        set_learning_rate(optimizer, learning_rate(config, step, plan.steps))
        loss, state = chunk_loss(model, streams, state)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained_parameters(model), config.clip_norm)
        optimizer.step()
        step += 1
        spent += time.process_time() - began
        if plan.evaluate_every and step % plan.evaluate_every == 0:
            points.append(TrainingPoint(step, held_out_loss(model, validation), spent))
    if plan.evaluate_every and (not points or points[-1].step < step):
        points.append(TrainingPoint(step, held_out_loss(model, validation), spent))
    return TrainedModel(model.eval(), tuple(points), spent, step, step < plan.steps)


def train_fitting(
    make: Callable[[], LanguageModel], ids: Ids, validation: Ids, plan: TrainingPlan, budget: Budget, seed: int
) -> TrainedModel:
    """Train with a schedule whose length fits the text, and return the training with the lowest validation loss.

    Little text is learned by heart long before a long schedule ends. Where the validation loss has risen by more than
    `MEMORISED_LOSS` at the end, the model is trained afresh with a schedule of half the steps, as long as that helps.
    """
    trained = train(make(), ids, validation, plan, budget, seed)
    while trained.rise > MEMORISED_LOSS and not trained.is_cut:
        plan = replace(plan, steps=plan.steps // 2, evaluate_every=max(1, plan.evaluate_every // 2))
        shorter = train(make(), ids, validation, plan, budget, seed)
        if shorter.is_cut or shorter.loss >= trained.loss:
            break
        trained = shorter
    return trained


def chunk_loss(model: LanguageModel, streams: Streams, state: State) -> tuple[Tensor, State]:
    """Return the mean cross-entropy of the next chunk in nats a token, and the state after it, detached from its
    graph.
    """
    rows, fresh = streams.next_chunk()
    kept = ~fresh.unsqueeze(1)
    state = {name: torch.where(kept, tensor, 0.0) for name, tensor in state.items()}
    hidden, after = model(rows[:, :-1], state)
    loss = functional.cross_entropy(model.logits(hidden).flatten(0, 1), rows[:, 1:].flatten())
    return loss, {name: tensor.detach() for name, tensor in after.items()}


def training_config(family: Family, plan: TrainingPlan) -> TrainingConfig:
    """Return the settings of a family, those of the released bundles' configs, a little faster for smaller models."""
    return TrainingConfig(
        steps=plan.steps,
        batch_size=plan.batch_size,
        chunk_length=plan.chunk_length,
        learning_rate=LEARNING_RATES[family],
        warmup_steps=max(1, round(WARMUP_SHARE * plan.steps)),
        weight_decay=WEIGHT_DECAYS[family],
        clip_norm=CLIP_NORMS[family],
    )


def copied(model: LanguageModel) -> LanguageModel:
    """Return a copy of the model."""
    return copy.deepcopy(model)


@torch.no_grad()
def train_in_one_pass(model: EchoStateNetwork, ids: Ids, batch_size: int, length: int) -> float:
    """Fit the readout in place, in one pass.

    ids       int64 [num_tokens], read as series of `length` tokens, `batch_size` of them side by side, each from the
              state that the one before it left
    returns   CPU-seconds
    """
    began = time.process_time()
    num_columns = (len(ids) - 1) // batch_size
    rows = torch.from_numpy(ids[: batch_size * num_columns].reshape(batch_size, num_columns))
    following = torch.from_numpy(ids[1 : batch_size * num_columns + 1].reshape(batch_size, num_columns))
    cut = num_columns - max(1, round(CALIBRATION_SHARE * num_columns))
    sums = RidgeSums.zeros(model.hidden_size, model.vocabulary_size, model.device)
    state = model.initial_state(batch_size)
    for begin in range(0, cut, length):
        end = min(cut, begin + length)
        hidden, state = model(rows[:, begin:end], state)
        sums.add(hidden.flatten(0, 1), following[:, begin:end].flatten())
    weight, bias = sums.solve(RIDGE)
    scores = []
    for begin in range(cut, num_columns, length):
        hidden, state = model(rows[:, begin : begin + length], state)
        scores.append(torch.addmm(bias.float(), hidden.flatten(0, 1), weight.t().float()))
    targets = torch.cat([following[:, begin : begin + length].flatten() for begin in range(cut, num_columns, length)])
    with torch.enable_grad():
        calibration = calibrate(torch.cat(scores), targets, sums.targets)
    weight, bias = calibration.fold(weight, bias)
    model.readout.weight.copy_(weight)
    model.readout.bias.copy_(bias)
    return time.process_time() - began
