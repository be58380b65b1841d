"""Evaluation of a model on held-out text, in the way in which the model is served; and the choice of that text.

Input: a model and a token file; a run folder or text files. Output: `Figures`; token files. Must not know: training.

    line, paragraph   every document on its own, from the initial state and the boundary token
    file              one stream from the boundary to the end, with the state carried on

Every document's end counts as a token, unless the model's training text had no ends. Sums are float64.

`bits_per_char` is that of `meari score` and of /score: characters of the text in NFC, without ends.
`bits_per_char_with_ends` counts each scored end as one more character, like tools in which a line's end is a character
or a token of the text (KenLM's published figures).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from meari.bundle_format.names import END_ID, Document
from meari.models.errors import CheckpointError, EmptyCorpus, NotFinite
from meari.models.figures import Figures, figures
from meari.models.files import current_folder
from meari.models.language_model import LanguageModel
from meari.models.text.corpus import read_pieces
from meari.models.text.text_files import list_files
from meari.models.text.token_file import UNCOUNTED, TokenFile, open_token_file, write_token_file
from meari.models.text.tokenizer import Tokenizer

Ids = NDArray[Any]

BATCH_TOKENS = 4096  # rows times length of one call of the model
MAX_ROWS = 64
WINDOW_TOKENS = 1 << 20  # documents are sorted by length within this many tokens
QUICK_TOKENS = 200_000  # of the held-out text that is measured while training
NUM_WARMUP = 256  # tokens that warm up a piece of a stream


@dataclass(frozen=True)
class Row:
    """A piece of the token row that is run from the initial state; the first `num_warmup` targets are not counted."""

    ids: Ids
    num_warmup: int = 0


def evaluate(model: LanguageModel, tokens: TokenFile, *, counts_ends: bool = True) -> Figures:
    """Run a whole token file through the model.

    counts_ends   False where the model's training text had no ends

    Raises NotFinite where a probability is not a number above zero.
    """
    nats, num_tokens = total_nats(model, scored_rows(tokens), counts_ends=counts_ends)
    num_ends = tokens.num_documents if counts_ends else 0
    return figures(nats, num_tokens, tokens.num_characters, tokens.num_bytes, num_ends)


def scored_rows(tokens: TokenFile) -> Iterator[Row]:
    """Return the rows of a whole token file, as served: documents, or one stream."""
    return iter([Row(tokens.ids)]) if tokens.unit is Document.FILE else document_rows(tokens.ids)


def document_rows(ids: Ids) -> Iterator[Row]:
    """Yield one row a document, including its two boundary tokens, sorted by length within a window of the file."""
    start = 0
    while start < len(ids) - 1:
        window = ids[start : start + WINDOW_TOKENS]
        ends = np.flatnonzero(window[1:] == END_ID) + 1
        while len(ends) == 0:  # a document longer than the window
            window = ids[start : start + 2 * len(window)]
            ends = np.flatnonzero(window[1:] == END_ID) + 1
        begins = np.concatenate(([0], ends[:-1]))
        for index in np.argsort(ends - begins, kind="stable"):
            yield Row(window[begins[index] : ends[index] + 1])
        start += int(ends[-1])


def segment_rows(ids: Ids, num_segments: int, num_warmup: int) -> list[Row]:
    """Cut one stream into pieces that run side by side, each warmed up on the tokens before it: fast and nearly
    exact.
    """
    cuts = np.linspace(0, len(ids) - 1, num_segments + 1).astype(np.int64)
    rows = []
    for begin, end in itertools.pairwise(cuts.tolist()):
        warm = min(num_warmup, begin)
        if end > begin:
            rows.append(Row(ids[begin - warm : end + 1], warm))
    return rows


@torch.no_grad()
def total_nats(model: LanguageModel, rows: Iterator[Row] | list[Row], *, counts_ends: bool = True) -> tuple[float, int]:
    """Return the sum of -ln P over every counted target of the rows, and their number. The model's mode is restored."""
    was_training = model.training
    model.eval()
    nats, num_tokens = 0.0, 0
    for group in groups(iter(rows)):
        added, counted = _group_nats(model, group, counts_ends=counts_ends)
        nats, num_tokens = nats + added, num_tokens + counted
    model.train(was_training)
    return nats, num_tokens


def groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Group rows of similar length that may run side by side."""
    group: list[Row] = []
    for row in rows:
        longest = max([len(row.ids), *(len(other.ids) for other in group)])
        if group and (len(group) >= MAX_ROWS or longest > 2 * len(group[0].ids) + 16):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def chunks(group: list[Row], *, counts_ends: bool) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield inputs and targets of rows side by side, int64 [rows, length]; UNCOUNTED marks positions that are not
    scored.

    A chunk of positions at a time, so that memory stays flat whatever the rows' length.
    """
    length = max(1, BATCH_TOKENS // len(group))
    longest = max(len(row.ids) for row in group) - 1
    for begin in range(0, longest, length):
        inputs, targets = _chunk(group, begin, min(length, longest - begin))
        if not counts_ends:
            targets[targets == END_ID] = UNCOUNTED
        yield inputs, targets


def _group_nats(model: LanguageModel, group: list[Row], *, counts_ends: bool) -> tuple[float, int]:
    state = model.initial_state(len(group))
    nats, num_tokens = 0.0, 0
    for inputs, targets in chunks(group, counts_ends=counts_ends):
        hidden, state = model(torch.from_numpy(inputs).to(model.device), state)
        logits = model.logits(hidden).flatten(0, 1)
        wanted = torch.from_numpy(targets).to(model.device).flatten()
        losses = functional.cross_entropy(logits, wanted, ignore_index=UNCOUNTED, reduction="none")
        nats += float(losses.double().sum())
        num_tokens += int(np.count_nonzero(targets != UNCOUNTED))
    return nats, num_tokens


def _chunk(group: list[Row], begin: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    inputs = np.zeros((len(group), length), dtype=np.int64)
    targets = np.full((len(group), length), UNCOUNTED, dtype=np.int64)
    for index, row in enumerate(group):
        piece = row.ids[begin : begin + length + 1].astype(np.int64)
        if len(piece) < 2:
            continue
        inputs[index, : len(piece) - 1] = piece[:-1]
        targets[index, : len(piece) - 1] = piece[1:]
        targets[index, : max(0, row.num_warmup - begin)] = UNCOUNTED
    return inputs, targets


def quick_nats_per_token(model: LanguageModel, tokens: TokenFile) -> float:
    """Return nats per token of at most the first QUICK_TOKENS tokens: to watch a training, not to report.

    Raises NotFinite.
    """
    nats, num_tokens = total_nats(model, quick_rows(tokens))
    if not math.isfinite(nats):
        raise NotFinite(f"the cross-entropy of the validation text is {nats}: lower training.learning_rate")
    return nats / num_tokens


def quick_rows(tokens: TokenFile) -> Iterator[Row]:
    """Return at most the first QUICK_TOKENS tokens; a stream is cut into pieces that run side by side."""
    ids = tokens.ids[: QUICK_TOKENS + 1]
    if tokens.unit is Document.FILE:
        num_segments = max(1, min(MAX_ROWS, len(ids) // (4 * NUM_WARMUP)))
        return iter(segment_rows(ids, num_segments, NUM_WARMUP))
    return iter(document_rows(_whole_documents(tokens.ids, ids)))


def _whole_documents(ids: Ids, first: Ids) -> Ids:
    """Return the documents that end within `first`, or the very first one if none does."""
    ends = np.flatnonzero(first[1:] == END_ID) + 1
    if len(ends):
        return first[: int(ends[-1]) + 1]
    return next(iter(document_rows(ids))).ids


def open_part(folder: Path, part: str) -> TokenFile:
    """Open the prepared tokens of a run's `validation` or `test` part.

    folder   the run, or one of the checkpoint folders in it

    Raises CheckpointError where the run has no such part, TokenFileError where it is damaged.
    """
    for place in (folder, folder.parent):
        path = current_folder(place / "tokens") / f"{part}.tokens"
        if path.exists():
            return open_token_file(path)
    raise CheckpointError(f"{folder}: has no prepared {part} text; choose another --part, or files with --text")


def has_ends(folder: Path, unit: Document) -> bool:
    """Return whether the training text of a run, or of a checkpoint folder in it, had ends to learn from.

    unit   a document of the corpus, which decides where the prepared text is gone: lines and paragraphs have ends
    """
    for place in (folder, folder.absolute().parent):
        path = current_folder(place / "tokens") / "train.tokens"
        if path.exists():
            return open_token_file(path).counts.has_ends
    return unit is not Document.FILE


def encode_files(files: Sequence[Path], tokenizer: Tokenizer, unit: Document, folder: Path) -> TokenFile:
    """Encode text files, or all text files of folders, into a token file in `folder`.

    Raises CorpusError: a file that cannot be read, is not UTF-8, or no text at all.
    """
    path = folder / "text.tokens"
    counts = write_token_file(path, read_pieces(list_files(files), unit), tokenizer, unit)
    if not counts.num_documents:
        raise EmptyCorpus("got no text, expected some", source=", ".join(map(str, files)))
    return open_token_file(path)
