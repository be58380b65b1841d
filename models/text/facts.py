"""Facts about a text that decide how a model is trained on it.

Input: text files. Output: `TextFacts`. Must not know: tokenizers, models.

At most SAMPLE_CHARACTERS are read, from the beginnings of at most MAX_SAMPLED_FILES; sizes beyond them are estimated
from the files' bytes. The unit of a document follows from how lines stand together. A line is wrapped if a limit of its
width, not its sentence, ended it:

    many files                              file: each is a document
    paragraphs of wrapped lines             paragraph
    lines a blank line apart                paragraph
    lines that follow one another           line, unless they are wrapped, indented or very few
    all else: verse, dialogue, code, prose  file: one stream
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meari.bundle_format.names import Document
from meari.models.errors import EmptyCorpus, UnreadableFile
from meari.models.text.corpus import BadLines, read_pieces
from meari.models.text.text_files import check_rereadable, is_packed, list_once

SAMPLE_CHARACTERS = 1 << 22
MAX_SAMPLED_FILES = 256  # evenly among all
MANY_FILES = 20
MIN_LINES = 20  # fewer are no documents to learn from
GZIP_RATIO = 3
MAX_CONTROL_SHARE = 1e-3
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", '."', ".”", ".’")
MAX_ENDED_SHARE = 0.4
MIN_WRAPPED_WIDTH, MAX_WRAPPED_WIDTH = 55, 200
JSON_CHARACTERS = 10_000  # of a value, which a sample may cut off
NAMED_CHARACTERS = 1_000  # the most frequent ones, which decide the script

_JSON_BEGINNING = re.compile(r"""\{\s*"|\[\s*[\[{"]""")
_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
_CONTROLS = frozenset(chr(code) for code in range(32)) - set("\t\n\r\f\v\x1b")


@dataclass(frozen=True)
class TextFacts:
    """Sizes and shape of a text.

    num_characters, num_bytes   of all files, unpacked; estimated beyond the sample
    num_documents               likewise
    num_kinds                   of characters in the sample
    script                      of most letters: Latin, Hangul, Han, …; "none" without letters
    shape                       why `document` was chosen, in words
    advice                      what to do first with files of another kind than plain text; "" for text
    """

    num_files: int
    num_characters: int
    num_bytes: int
    num_kinds: int
    script: str
    document: Document
    num_documents: int
    shape: str
    advice: str = ""

    @property
    def bytes_per_character(self) -> float:
        return self.num_bytes / self.num_characters

    def in_words(self) -> str:
        """Return a line about the text."""
        files = "" if self.num_files == 1 else f" in {self.num_files:,} files"
        return (
            f"{self.num_characters:,} characters ({self.num_kinds:,} kinds, {self.script} script){files}: "
            f"{self.shape}, so a document is a {self.document}"
        )


def look_at(paths: Iterable[str | Path], max_bad: int = 0) -> TextFacts:
    """Read samples of files and folders, as `meari train` takes them.

    Raises UnreadableFile, BrokenText; EmptyCorpus for text of white space alone.
    """
    files = list_once(paths)
    for path in files:
        check_rereadable(path)
    sampled = files[:: -(-len(files) // MAX_SAMPLED_FILES)]
    bad = BadLines(max_bad) if max_bad else None
    samples = [_sample(path, SAMPLE_CHARACTERS // len(sampled), bad) for path in sampled]
    texts = [text for text, _ in samples]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if not any(not character.isspace() for character in counts):
        raise EmptyCorpus("got no text, expected some", source=", ".join(map(str, files)))
    _check_text(sampled, texts)
    sampled_bytes = sum(len(text.encode()) for text in texts)
    sizes = {path: len(text.encode()) for path, (text, is_whole) in zip(sampled, samples, strict=True) if is_whole}
    num_bytes = max(sampled_bytes, sum(sizes[path] if path in sizes else _unpacked_bytes(path) for path in files))
    scale = num_bytes / sampled_bytes
    document, num_documents, shape = unit_of(texts)
    num_documents = len(files) if document is Document.FILE else round(num_documents * scale)
    return TextFacts(
        num_files=len(files),
        num_characters=round(counts.total() * scale),
        num_bytes=num_bytes,
        num_kinds=len(counts),
        script=_script(counts),
        document=document,
        num_documents=num_documents,
        shape=shape,
        advice=_advice(sampled, texts),
    )


def _sample(path: Path, limit: int, bad: BadLines | None) -> tuple[str, bool]:
    """Return the beginning of a file, and whether that is all of it."""
    parts, size = [], 0
    for piece in read_pieces([path], Document.FILE, bad):
        parts.append(piece.text)
        size += len(piece.text)
        if size >= limit:
            return "".join(parts), piece.ends
    return "".join(parts), True


def _unpacked_bytes(path: Path) -> int:
    return path.stat().st_size * (GZIP_RATIO if is_packed(path) else 1)


def _check_text(files: Sequence[Path], texts: Sequence[str]) -> None:
    for path, text in zip(files, texts, strict=True):
        controls = sum(text.count(character) for character in _CONTROLS)
        if controls > MAX_CONTROL_SHARE * len(text):
            message = f"got a binary file ({controls:,} control characters among {len(text):,}), expected text"
            raise UnreadableFile(message, source=str(path))


def _advice(files: Sequence[Path], texts: Sequence[str]) -> str:
    """Return how to take the texts out of JSON or HTML, of which the notation would be learnt as well."""
    for path, text in zip(files, texts, strict=True):
        head = text.lstrip("\ufeff \t\n")
        if _JSON_BEGINNING.match(head) and _is_json(head):
            take = "`jq -r .text`, if that is its name" if head[0] == "{" else "`jq -r '.[].text'`, if that is its name"
            return f"{path} holds JSON, whose names and brackets would be learnt: take the texts out first ({take})"
        if head[:9].lower() == "<!doctype" or head[:5].lower() in ("<html", "<?xml"):
            return f"{path} holds HTML or XML, whose tags would be learnt: take the text out first"
    return ""


def _is_json(text: str) -> bool:
    """Return whether a text begins with an object or a list in JSON; a sample may end within it."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return len(text) > JSON_CHARACTERS and error.pos >= len(text) - JSON_CHARACTERS
    except RecursionError:
        return True
    return True


def unit_of(texts: Sequence[str]) -> tuple[Document, int, str]:
    """Return the unit of a document, the number of documents in these texts, and the reason in words."""
    if len(texts) >= MANY_FILES:
        return Document.FILE, len(texts), "many files"
    blocks = [block for text in texts for block in _blocks(text.split("\n"))]
    lines = [line for block in blocks for line in block]
    wrapped = _are_wrapped(blocks)
    if len(lines) < MIN_LINES:
        return Document.FILE, len(texts), f"{len(lines):,} line{'s' * (len(lines) != 1)}"
    if len(blocks) >= max(MIN_LINES, len(lines) / 1.3):
        return Document.PARAGRAPH, len(blocks), "lines with blank lines between them"
    is_divided = len(blocks) >= max(MIN_LINES, len(lines) / 50)
    if is_divided and wrapped:
        return Document.PARAGRAPH, len(blocks), "paragraphs of wrapped lines"
    indented = sum(line[0].isspace() for line in lines)
    if is_divided or wrapped or indented > len(lines) / 5:
        shape = "wrapped lines" if wrapped else "lines that belong together"
        return Document.FILE, len(texts), f"one stream of {shape}"
    return Document.LINE, len(lines), "lines that stand alone"


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield the runs of lines that are not blank."""
    for is_text, run in itertools.groupby(lines, key=lambda line: bool(line.strip())):
        if is_text:
            yield list(run)


def _are_wrapped(blocks: Sequence[Sequence[str]]) -> bool:
    """Return whether nearly all lines but the last of each block are about as long as the longest ones, and few of
    them end a sentence.
    """
    lines = [line.rstrip() for block in blocks for line in block[:-1]]
    if not lines or sum(line.endswith(SENTENCE_ENDS) for line in lines) > MAX_ENDED_SHARE * len(lines):
        return False
    inner = sorted(map(len, lines))
    width = inner[int(0.95 * (len(inner) - 1))]
    long = sum(length >= 0.75 * width for length in inner)
    return MIN_WRAPPED_WIDTH <= width <= MAX_WRAPPED_WIDTH and long >= 0.7 * len(inner)


def _script(counts: Counter[str]) -> str:
    scripts: Counter[str] = Counter()
    for character, count in counts.most_common(NAMED_CHARACTERS):
        if character.isalpha():
            name = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
            scripts[_SCRIPTS.get(name, name.title())] += count
    return scripts.most_common(1)[0][0] if scripts else "none"
