"""The training loop: truncated back-propagation through time over parallel streams, stateful from chunk to chunk.

Input: a config, a prepared corpus, a run folder. Output: `best/`, `last/` and `history.jsonl` in it, and an `Ending`.
Must not know: raw text, the command line; the display, the clock, the stop request and the other processes are passed
in.

One step: take a chunk of every stream, reset the states of the streams that start afresh, run forward, take the mean
cross-entropy in nats, run backward within the chunk, clip the gradient's norm, move the weights, carry the states on.
The learning rate of a step is proportional to the length of its chunk.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from meari.models.cells.esn import EchoStateNetwork
from meari.models.checkpoint import fill_checkpoint
from meari.models.choices import Schedule, TrainingPrecision
from meari.models.config import Config
from meari.models.errors import NotFinite
from meari.models.evaluation import quick_nats_per_token
from meari.models.families import RecurrentLanguageModel, build_model
from meari.models.figures import perplexity
from meari.models.files import replaced_folder
from meari.models.language_model import LanguageModel, State
from meari.models.readout.softmax import whiten_gated_readout
from meari.models.text.token_file import UNCOUNTED
from meari.models.text.tokens import PreparedCorpus
from meari.models.training.display import Display
from meari.models.training.history import EvaluationRecord, History, NullHistory, StepRecord
from meari.models.training.optimizer import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    penalty,
    set_learning_rate,
    trained_parameters,
)
from meari.models.training.process import StopRequest
from meari.models.training.run_folder import RunFolder
from meari.models.training.snapshot import Progress, Snapshot, load_snapshot, save_snapshot
from meari.models.training.streams import (
    Chunk,
    chunk_length,
    fingerprint,
    num_steps,
    open_streams,
    token_counts,
    tokens_per_step,
)
from meari.models.training.workers import SAME_CORPUS, SINGLE_PROCESS, Workers


class Ending(StrEnum):
    """Reason for the end of the loop."""

    FINISHED = "finished"
    EARLY_STOPPED = "stopped early: validation no longer improves"
    TIME_LIMIT = "stopped at the time limit"
    INTERRUPTED = "interrupted"


ENDINGS: tuple[Ending | None, ...] = (None, *Ending)  # numbered, so that the processes can agree on one


class Trainer:
    """State of one run. `resume` restores it from `last/`; `run` trains until there is a reason to end."""

    def __init__(
        self,
        config: Config,
        corpus: PreparedCorpus,
        run: RunFolder,
        device: torch.device,
        display: Display,
        clock: Callable[[], float],
        stop: StopRequest,
        workers: Workers = SINGLE_PROCESS,
    ) -> None:
        self._config = config
        self._training = config.training
        self._corpus = corpus
        self._run = run
        self._display = display
        self._clock = clock
        self._cpu_clock: Callable[[], float] | None = None
        self._stop = stop
        self._workers = workers
        self._rows = workers.rows(config.training.batch_size)
        torch.manual_seed(config.seed)
        self.model: LanguageModel = build_model(config.model, corpus.tokenizer.vocabulary_size, config.seed).to(device)
        if isinstance(self.model, RecurrentLanguageModel) and self.model.adaptive is not None:
            self.model.adaptive.order_by(token_counts(corpus.train.ids, corpus.tokenizer.vocabulary_size))
        if isinstance(self.model, EchoStateNetwork):
            whiten_gated_readout(self.model, corpus.train.ids)
        self.model.take_share(workers.rank, workers.size)
        self._optimizer = build_optimizer(self.model, config.training, corpus.train.ids)
        self._average = WeightAverage(self.model, config.training)
        self._streams = open_streams(config, corpus, np.random.default_rng(config.seed))
        self._state: State = self.model.initial_state(self._rows.stop - self._rows.start)
        self._history = History(run.history) if workers.writes else NullHistory(run.history)
        self._num_targets = len(corpus.train.ids) - 1
        self._length = chunk_length(config.training, self._num_targets)
        self.total_steps = num_steps(config.training, self._num_targets)
        self.progress = Progress()
        self._fingerprint = workers.same(fingerprint(corpus), SAME_CORPUS)
        self._tokens_per_second = 0.0
        self._ran_since = 0.0
        self._ran_before = 0.0
        self._cpu_since = 0.0
        self._cpu_before: float | None = None

    def count_cpu_time(self, clock: Callable[[], float]) -> None:
        """Count processor time too, by a clock of this process in seconds. Call it before `run`."""
        self._cpu_clock = clock

    def resume(self) -> None:
        """Continue from `last/`. Raises CheckpointError."""
        self.progress, state = load_snapshot(
            self._run, self.model, self._optimizer, self._average, self._streams, self._fingerprint
        )
        if not self.progress.tokens:  # a snapshot from before they were counted
            steps = self.progress.step
            self.progress = replace(self.progress, tokens=steps * tokens_per_step(self._training, self._num_targets))
        self._state = {name: tensor[self._rows] for name, tensor in state.items()}
        self._history.cut(self.progress.step)

    def run(self) -> Ending:
        """Train until done. Raises NotFinite, and leaves `best/` and `last/` as they were."""
        self._ran_before = self.progress.seconds
        self._ran_since = self._clock()
        if self._cpu_clock is not None:
            self._cpu_before = self.progress.cpu_seconds if self.progress.step else 0.0
            self._cpu_since = self._cpu_clock()
        by_clock = self._training.schedule is Schedule.CLOCK
        seconds = (self.progress.seconds, 60 * self._training.max_minutes) if by_clock else None
        self._display.start(self.progress.step, self.total_steps, seconds)
        try:
            while (ending := self._ending()) is None:
                self.train_step()
                if self._evaluation_is_due():
                    self._evaluate()
        finally:
            self._display.stop()
        self._end(ending)
        return ending

    def _ending(self) -> Ending | None:
        """Return the reason to end, the same in all processes even if only one got the signal or reached the time
        limit.
        """
        return ENDINGS[self._workers.largest(ENDINGS.index(self._own_ending()))]

    def _own_ending(self) -> Ending | None:
        progress, training = self.progress, self._training
        if progress.step >= self.total_steps or self._share_of_time() >= 1:
            return Ending.FINISHED
        if training.patience and progress.evaluations_since_best >= training.patience:
            return Ending.EARLY_STOPPED
        if self._stop.signal is not None:
            return Ending.INTERRUPTED
        if training.max_minutes and self._clock() - self._ran_since >= 60 * training.max_minutes:
            return Ending.TIME_LIMIT
        return None

    def _share_of_time(self) -> float:
        """Return how much of its time a run has used that ends by the clock; 0 for any other run."""
        training = self._training
        return self._seconds() / (60 * training.max_minutes) if training.schedule is Schedule.CLOCK else 0.0

    def _end(self, ending: Ending) -> None:
        is_over = ending in (Ending.FINISHED, Ending.TIME_LIMIT) and not self.progress.is_finished
        if is_over and not self._evaluation_is_due():
            self._evaluate()
        is_finished = ending in (Ending.FINISHED, Ending.EARLY_STOPPED)
        self.progress = replace(self.progress, seconds=self._seconds(), is_finished=is_finished)
        self._save_last()

    def train_step(self) -> None:
        """Take one chunk and move the weights. Raises NotFinite."""
        began = self._clock()
        whole = self._streams.next_chunk()
        chunk = whole.of(self._rows)
        share = self._workers.from_first(self._share_of_time) if self._training.schedule is Schedule.CLOCK else 0.0
        rate = learning_rate(self._training, self.progress.step, self.total_steps, share)
        set_learning_rate(self._optimizer, rate * chunk.inputs.shape[1] / self._length)
        loss, added = self._loss(chunk, self._workers.size * chunk.num_learnt / max(1, whole.num_learnt))
        self._optimizer.zero_grad(set_to_none=True)
        (loss + added).backward()  # type: ignore[no-untyped-call]
        weights = trained_parameters(self.model)
        loss = self._workers.average_gradients(weights, loss)
        norm = torch.nn.utils.clip_grad_norm_(weights, self._training.clip_norm)
        record = StepRecord(self.progress.step + 1, loss.item(), norm.item(), rate, round(self._seconds(), 3))
        _check_finite(record)
        self._optimizer.step()
        self._average.add()
        num_tokens = self._training.batch_size * chunk.inputs.shape[1]
        self.progress = replace(self.progress, step=record.step, tokens=self.progress.tokens + num_tokens)
        self._history.add(record)
        self._show(record, num_tokens / max(self._clock() - began, 1e-9))

    def _loss(self, chunk: Chunk, weight: float) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy of a chunk in nats, and the penalty that is added for the gradient.

        weight   of the chunk among those of all processes: 1 where each has as many targets to learn

        Carries the state on, cut off from this chunk's graph.
        """
        device = self.model.device
        self.model.train()
        with torch.autocast(
            device.type, torch.bfloat16, enabled=self._training.precision is TrainingPrecision.BFLOAT16
        ):
            state = self.model.restarted(self._state, torch.from_numpy(chunk.fresh).to(device))
            hidden, state = self.model(torch.from_numpy(chunk.inputs).to(device), state)
            loss = self._mean_loss(hidden, torch.from_numpy(chunk.targets).to(device))
        self._state = {name: tensor.detach() for name, tensor in state.items()}
        return loss if weight == 1 else weight * loss, penalty(hidden, self._training)

    def _mean_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the targets that are learnt; 0 where there is none."""
        if not self._corpus.train.num_masked:
            return self.model.loss(hidden, targets)
        learnt = targets != UNCOUNTED
        return self.model.loss(hidden[learnt], targets[learnt]) if learnt.any() else 0 * hidden.sum()

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        return step % self._training.evaluate_every == 0 or step == self.total_steps

    def _evaluate(self) -> None:
        """Measure on held-out text, keep the weights if they are the best so far, and save a snapshot."""
        with self._average.applied():
            is_best = self._measure()
        if not is_best:
            self._average.evaluated(self.progress.evaluations_since_best)
        self._save_last()

    def _measure(self) -> bool:
        """Measure the model's present weights, keep them if they are the best so far, and return whether they are."""
        nats = self._workers.from_first(lambda: quick_nats_per_token(self.model, self._corpus.validation))
        before = self.progress
        is_best = before.best_validation is None or nats < before.best_validation
        record = EvaluationRecord(before.step, nats, round(self._seconds(), 3))
        self._history.add(record)
        if is_best:
            self.progress = replace(
                before, best_validation=nats, best_step=before.step, evaluations_since_best=0, seconds=record.seconds
            )
            self._save_best(nats)
        else:
            waited = before.evaluations_since_best + 1
            self.progress = replace(before, evaluations_since_best=waited, seconds=record.seconds)
        self._display.evaluation(record, is_best=is_best)
        return is_best

    def _save_best(self, nats: float) -> None:
        if not self._workers.writes:
            return
        figures = {"validation": {"nats_per_token": nats, "perplexity": perplexity(nats)}}
        with replaced_folder(self._run.best) as folder:
            step = self.progress.step
            fill_checkpoint(folder, self.model, self._run.tokenizer, self._config, step=step, figures=figures)

    def _save_last(self) -> None:
        state = {name: self._workers.gathered(tensor) for name, tensor in self._state.items()}
        self.progress = replace(self.progress, cpu_seconds=self._cpu_seconds())
        if not self._workers.writes:
            return
        self._history.flush()
        snapshot = Snapshot(self.progress, self._streams.state(), state, self._average.tensors())
        save_snapshot(self._run, self._config, self.model, self._optimizer, snapshot, self._fingerprint)

    def _seconds(self) -> float:
        return self._ran_before + self._clock() - self._ran_since

    def _cpu_seconds(self) -> float | None:
        """Return the processor time of all processes together, which all call this; None if a part was not counted."""
        if self._cpu_clock is None or self._cpu_before is None:
            return None
        own = torch.tensor([self._cpu_clock() - self._cpu_since], device=self.model.device)
        self._workers.add_up([own])
        return self._cpu_before + own.item()

    def _show(self, record: StepRecord, now: float) -> None:
        before = self._tokens_per_second or now
        self._tokens_per_second = 0.95 * before + 0.05 * now
        self._display.step(record, self._tokens_per_second)


def _check_finite(record: StepRecord) -> None:
    for name, value in (("loss", record.loss), ("gradient norm", record.grad_norm)):
        if not math.isfinite(value):
            raise NotFinite(
                f"step {record.step}: the {name} is {value}, expected a finite number. "
                "Lower training.learning_rate (or raise warmup_steps), or lower training.clip_norm, and start again; "
                "the checkpoints saved before this step are as they were"
            )
