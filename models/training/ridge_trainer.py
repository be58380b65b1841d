"""Training of a reservoir's readout by ridge regression: one pass, one solution, one calibration.

Input: a config, a prepared corpus, a run folder. Output: `best/`, `last/` and `history.jsonl` in it, and an `Ending`,
as from `models/training/trainer.py`. Must not know: raw text, the command line; the display, the clock, the stop
request and the other processes, whose sums are added at the end, are passed in.

The last part of the training text is kept out of the sums: the scores are calibrated on it. A second pass would add
nothing, so `steps` and `epochs` can only shorten the first. An interrupted run keeps its sums in `last/`:

    sums.safetensors   the sums, and the recurrent state of every stream
    progress.json      finished chunks, streams, seconds, fingerprint of the corpus
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from meari.models.cells.esn import EchoStateNetwork
from meari.models.checkpoint import fill_checkpoint, read_tensors, write_tensors
from meari.models.config import Config, ReservoirConfig
from meari.models.evaluation import quick_nats_per_token
from meari.models.families import build_model
from meari.models.figures import perplexity
from meari.models.files import current_folder, replaced_folder
from meari.models.language_model import State
from meari.models.readout.ridge import RidgeSums, calibrate
from meari.models.readout.states import Ids, state_chunks
from meari.models.text.token_file import UNCOUNTED
from meari.models.text.tokens import PreparedCorpus
from meari.models.training.display import Display
from meari.models.training.history import EvaluationRecord, History, NullHistory
from meari.models.training.process import StopRequest
from meari.models.training.run_folder import RunFolder
from meari.models.training.snapshot import PROGRESS, Progress, check_fit, restore_progress
from meari.models.training.streams import (
    Streams,
    chunk_length,
    fingerprint,
    num_steps,
    starting_tokens,
    tokens_per_step,
)
from meari.models.training.trainer import ENDINGS, Ending
from meari.models.training.workers import SAME_CORPUS, SINGLE_PROCESS, Workers

SUMS = "sums.safetensors"
CALIBRATION_SHARE = 0.02
MAX_SCORES = 50_000_000  # numbers that the calibration holds at a time: tokens times vocabulary
NOTE_SECONDS = 10.0


class RidgeTrainer:
    """State of one run; the same methods as `Trainer`."""

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
        assert isinstance(config.model, ReservoirConfig), "only a reservoir has such a readout"
        vocabulary_size = corpus.tokenizer.vocabulary_size
        model = build_model(config.model, vocabulary_size, config.seed).to(device)
        assert isinstance(model, EchoStateNetwork)
        self.model = model
        self._config, self._corpus, self._run = config, corpus, run
        self._ridge = config.model.ridge
        self._display, self._clock, self._stop, self._workers = display, clock, stop, workers
        self._rows = workers.rows(config.training.batch_size)
        self._ids, self._held_out = split_ids(corpus.train.ids, vocabulary_size)
        self._streams = self._open_streams()
        self._state: State = model.initial_state(self._rows.stop - self._rows.start)
        self._sums = RidgeSums.zeros(model.readout_inputs, vocabulary_size, device)
        self._history = History(run.history) if workers.is_first else NullHistory(run.history)
        self._fingerprint = workers.same(fingerprint(corpus), SAME_CORPUS)
        num_targets = len(self._ids) - 1
        one_pass = math.ceil(num_targets / tokens_per_step(config.training, num_targets))
        self.total_steps = min(one_pass, num_steps(config.training, len(corpus.train.ids) - 1))
        self.progress = Progress()
        self._ran_since = self._ran_before = self._noted = 0.0

    def resume(self) -> None:
        """Continue from `last/`. Raises CheckpointError."""
        folder = current_folder(self._run.last)
        self.progress = restore_progress(self._run, folder, self._streams, self._fingerprint)
        self._history.cut(self.progress.step)
        if not self.progress.is_finished:
            tensors = read_tensors(folder / SUMS)
            check_fit(folder / SUMS, tensors, self._sums.tensors() | self.model.initial_state(self._streams.size))
            tensors = {name: value.to(self.model.device) for name, value in tensors.items()}
            self._state = {name: tensors.pop(name)[self._rows] for name in self._state}
            if self._workers.is_first:  # the sums so far count once; the other processes start from zero
                self._sums = RidgeSums(**tensors)

    def run(self) -> Ending:
        """Add up, solve, calibrate. Raises RidgeError or NotFinite; a finished run ends at once."""
        self._ran_before, self._ran_since = self.progress.seconds, self._clock()
        if self.progress.is_finished:
            return Ending.FINISHED
        ending = self._add_up()
        self._workers.add_up(self._sums.tensors().values())
        self._state = {name: self._workers.gathered(tensor) for name, tensor in self._state.items()}
        if self._workers.is_first:
            self._end(ending)
        return ending

    def _end(self, ending: Ending) -> None:
        if ending is Ending.INTERRUPTED:
            self.progress = replace(self.progress, seconds=self._seconds())
            self._save_last()
            return
        self._set_readout()
        self._finish()

    def _add_up(self) -> Ending:
        while (ending := ENDINGS[self._workers.largest(ENDINGS.index(self._own_ending()))]) is None:
            self._add_chunk()
        return ending

    def _own_ending(self) -> Ending | None:
        most_seconds = 60 * self._config.training.max_minutes or math.inf
        if self.progress.step >= self.total_steps:
            return Ending.FINISHED
        if self._stop.signal is not None:
            return Ending.INTERRUPTED
        if self.progress.step and self._clock() - self._ran_since >= most_seconds:
            return Ending.TIME_LIMIT
        return None

    def _add_chunk(self) -> None:
        chunk = self._streams.next_chunk().of(self._rows)
        device = self.model.device
        kept = torch.from_numpy(~chunk.fresh).to(device).unsqueeze(1)
        state = {name: torch.where(kept, tensor, 0.0) for name, tensor in self._state.items()}
        hidden, self._state = self.model(torch.from_numpy(chunk.inputs).to(device), state)
        targets = torch.from_numpy(chunk.targets).to(device)
        learnt = targets != UNCOUNTED
        self._sums.add(self.model.readout_states(hidden[learnt]), targets[learnt])
        num_tokens = self._config.training.batch_size * chunk.inputs.shape[1]
        tokens = self.progress.tokens + num_tokens
        self.progress = replace(self.progress, step=self.progress.step + 1, tokens=tokens)
        step, seconds = self.progress.step, self._seconds()
        if seconds - self._noted >= NOTE_SECONDS or step == self.total_steps:
            self._noted = seconds
            self._display.note(f"step {step}/{self.total_steps}  {int(self._sums.count):,} states added up")

    def _set_readout(self) -> None:
        """Solve, calibrate on the held-back text, and set the model's readout."""
        weight, bias = self._sums.solve(self._ridge)
        pieces = [
            (torch.addmm(bias.float(), states, weight.t().float()), targets)
            for states, targets in state_chunks(self.model, self._held_out, self._masked_held_out())
        ]
        scores, targets = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        weight, bias = calibrate(scores, targets, self._sums.targets).fold(weight, bias)
        with torch.no_grad():
            self.model.readout.weight.copy_(weight)
            self.model.readout.bias.copy_(bias)

    def _masked_held_out(self) -> Ids:
        """Return the places of masked tokens in the held-back text."""
        masked = self._corpus.train.masked - (len(self._ids) - 1)
        return masked[masked >= 0]

    def _finish(self) -> None:
        step = self.progress.step
        nats = quick_nats_per_token(self.model, self._corpus.validation)
        record = EvaluationRecord(step, nats, round(self._seconds(), 3))
        self._history.add(record)
        self._display.evaluation(record, is_best=True)
        tokens = self.progress.tokens
        self.progress = Progress(step, nats, step, 0, self._seconds(), is_finished=True, tokens=tokens)
        with replaced_folder(self._run.best) as folder:
            figures = {"validation": {"nats_per_token": nats, "perplexity": perplexity(nats)}}
            fill_checkpoint(folder, self.model, self._run.tokenizer, self._config, step=step, figures=figures)
        self._save_last()

    def _save_last(self) -> None:
        self._history.flush()
        described = dataclasses.asdict(self.progress)
        described |= {"streams": self._streams.state(), "fingerprint": self._fingerprint}
        with replaced_folder(self._run.last) as folder:
            step = self.progress.step
            fill_checkpoint(folder, self.model, self._run.tokenizer, self._config, step=step, figures={})
            if not self.progress.is_finished:
                write_tensors(folder / SUMS, self._sums.tensors() | self._state)
            (folder / PROGRESS).write_text(json.dumps(described) + "\n", "utf-8")

    def _open_streams(self) -> Streams:
        training, unit = self._config.training, self._config.corpus.document
        return Streams(
            self._ids,
            unit,
            starting_tokens(self._corpus.tokenizer, unit),
            batch_size=training.batch_size,
            length=chunk_length(training, len(self._ids) - 1),
            restart_share=training.restart_share,
            generator=np.random.default_rng(self._config.seed),
            masked=self._corpus.train.masked,
        )

    def _seconds(self) -> float:
        return self._ran_before + self._clock() - self._ran_since


def split_ids(ids: Ids, vocabulary_size: int) -> tuple[Ids, Ids]:
    """Split the training row into one part for the sums and a last one for the calibration; both have the token at the
    cut.
    """
    share = int(CALIBRATION_SHARE * len(ids))
    num_held_out = min(max(share, min(2000, len(ids) // 4)), max(2000, MAX_SCORES // vocabulary_size))
    cut = len(ids) - 1 - max(1, num_held_out)
    return ids[: cut + 1], ids[cut:]
