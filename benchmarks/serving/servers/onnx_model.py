"""Model of the servers that run ONNX files: a bundle under onnxruntime, and batches of sequences over it.

Input: a bundle's folder, prompts as text. Output: texts and log-probabilities. Must not know: meari. It serves these
two files with care: rows that have ended leave the batch, the output layer is run for rows that need it, sampling is
done for all rows at once. Text is joined with spaces, which is right for word tokenizers and does for measuring others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

MAX_BATCH = 64
Ask = dict[str, Any]


@dataclass
class Row:
    """One sequence in a batch: tokens still to be fed, and how many to sample after them."""

    key: Hashable
    forced: list[int]  # the next one last
    left: int


class OnnxModel:
    """A bundle, opened with one thread."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or Path(os.environ["BENCH_BUNDLE"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        self.end_id: int = manifest["boundary"]["id"]
        self.state_shapes = {entry["name"]: tuple(entry["shape"]) for entry in manifest["state"]}
        self._cell = _session(folder / "cell.onnx")
        self._output = _session(folder / "output.onnx")
        self._names = ["hidden", *(f"next_{name}" for name in self.state_shapes)]
        self._random = np.random.default_rng()

    def encode(self, text: str) -> list[int]:
        """Return token ids, without the boundary token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text_of(self, token: int) -> str:
        """Return one generated token as text."""
        return f" {self.tokenizer.id_to_token(token)}"

    def initial(self, rows: int) -> dict[str, Any]:
        """Return the state before any token, float32 [rows, *shape] a tensor."""
        return {name: np.zeros((rows, *shape), np.float32) for name, shape in self.state_shapes.items()}

    def step(self, tokens: Any, states: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Feed one token a row, int64 [rows]; returns hidden rows and the new states."""
        hidden, *new = self._cell.run(self._names, {"token": tokens, **states})
        return hidden, dict(zip(self.state_shapes, new, strict=True))

    def logprobs(self, hidden: Any) -> Any:
        """Return log-probabilities of the next token, float32 [rows, vocabulary]."""
        return self._output.run(["logprobs"], {"hidden": hidden})[0]

    def sample(self, hidden: Any) -> Any:
        """Sample one token a row, int64 [rows], never the end token."""
        probabilities = np.exp(self.logprobs(hidden))
        probabilities[:, self.end_id] = 0.0
        sums = np.cumsum(probabilities, axis=1)
        picks = self._random.random((len(sums), 1), np.float32) * sums[:, -1:]
        return np.minimum((sums <= picks).sum(axis=1), sums.shape[1] - 1)

    def generate(self, asks: Sequence[Ask]) -> list[Ask]:
        """Return whole answers of one batch."""
        ids: list[list[int]] = [[] for _ in asks]
        for step in self.steps(asks):
            for index, token in step:
                ids[index].append(token)
        return [
            {"choices": [{"text": "".join(map(self.text_of, row))}], "usage": {"generated_tokens": len(row)}}
            for row in ids
        ]

    def steps(self, asks: Sequence[Ask]) -> Iterator[list[tuple[int, int]]]:
        """Yield the tokens of one batch, a list a step: (request, token)."""
        batch = Batch(self)
        for index, ask in enumerate(asks):
            batch.add(index, ask)
        while batch.rows:
            step = [(int(str(key)), token) for key, token, _ in batch.step()]
            if step:
                yield step

    def score(self, ask: Ask) -> Ask:
        """Return the log-probability of each text, its end included."""
        ids = [self.encode(text) for text in ask["texts"]]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        logprobs = [0.0] * len(ids)
        for first in range(0, len(order), MAX_BATCH):
            self._score_batch(order[first : first + MAX_BATCH], ids, logprobs)
        results = [{"logprob": value, "num_tokens": len(row) + 1} for value, row in zip(logprobs, ids, strict=True)]
        return {"results": results, "usage": {"scored_tokens": sum(len(row) + 1 for row in ids)}}

    def _score_batch(self, members: Sequence[int], ids: list[list[int]], logprobs: list[float]) -> None:
        longest = max(len(ids[member]) for member in members)
        padded = np.zeros((len(members), longest + 2), np.int64)
        for row, member in enumerate(members):
            padded[row, 1 : len(ids[member]) + 1] = ids[member]
        states = self.initial(len(members))
        for place in range(longest + 1):
            hidden, states = self.step(padded[:, place], states)
            picked = self.logprobs(hidden)[np.arange(len(members)), padded[:, place + 1]]
            for row, member in enumerate(members):
                if place <= len(ids[member]):
                    logprobs[member] += float(picked[row])


class Batch:
    """Sequences that run together; they may join between steps, and leave when they have ended."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.rows: list[Row] = []
        self._states = model.initial(0)
        self._tokens = np.zeros(0, np.int64)

    def add(self, key: Hashable, ask: Ask) -> None:
        """Let a request join: `prompt` and `max_tokens`."""
        prompt = self._model.encode(ask["prompt"])
        self.rows.append(Row(key, prompt[::-1], int(ask["max_tokens"])))
        fresh = self._model.initial(1)
        self._states = {name: np.concatenate([old, fresh[name]]) for name, old in self._states.items()}
        self._tokens = np.append(self._tokens, self._model.end_id)

    def step(self) -> list[tuple[Hashable, int, bool]]:
        """Feed every row its next token; returns (key, token, whether it was the last) of rows that sampled one."""
        hidden, self._states = self._model.step(self._tokens, self._states)
        sampling = [index for index, row in enumerate(self.rows) if not row.forced]
        for index, row in enumerate(self.rows):
            if row.forced:
                self._tokens[index] = row.forced.pop()
        if not sampling:
            return []
        all_rows = len(sampling) == len(self.rows)
        sampled = self._model.sample(hidden if all_rows else hidden[sampling])
        self._tokens[sampling] = sampled
        news = []
        for index, token in zip(sampling, sampled.tolist(), strict=True):
            row = self.rows[index]
            row.left -= 1
            news.append((row.key, token, row.left == 0))
        self._drop_ended()
        return news

    def _drop_ended(self) -> None:
        keep = [index for index, row in enumerate(self.rows) if row.left > 0]
        if len(keep) < len(self.rows):
            self.rows = [self.rows[index] for index in keep]
            self._states = {name: values[keep] for name, values in self._states.items()}
            self._tokens = self._tokens[keep]


def text_event(text: str) -> Ask:
    """Return a piece of a streamed answer."""
    return {"choices": [{"text": text}]}


def usage_event(num_tokens: int) -> Ask:
    """Return the last event of a streamed answer."""
    return {"usage": {"generated_tokens": num_tokens}}


def _session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
