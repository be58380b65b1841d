"""Vocabularies of others: tokens by their ids, and which of them are the boundary and the unknown token.

Input: a file and what the caller knows of it. Output: a `ForeignVocabulary`, and the `Tokenizer` that its texts need.
Must not know: weights.

A file is JSON (a list of tokens in the order of their ids, or an object of tokens and ids), or text with one token a
line. A bundle has its boundary token at id 0 and its unknown token at id 1, so tokens change their ids; either is added
if the vocabulary has none.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from meari.bundle_format.names import END, UNKNOWN, TokenizerKind
from meari.export.errors import Unimportable
from meari.file_kinds import kind_of_content, likely_encoding
from meari.models.fields import did_you_mean, show
from meari.models.text.tokenizer import Tokenizer

Units = Literal["words", "chars"]

ENDS = ("<eos>", "</s>", "<end>", "[eos]", "<|end|>", "<|endoftext|>")
BEGINNINGS = ("<sos>", "<bos>", "<s>", "<start>", "[bos]", "[sos]", "xxbos")
UNKNOWNS = ("<unk>", "<unknown>", "[unk]", "<|unk|>", "<oov>", "xxunk")
SPOKEN_END = "<|end of text|>"  # of words: no text split at white space has it
SUBWORDS = ("\u2581", "\u0120")  # ▁ of SentencePiece, Ġ of byte-level BPE
MANY_SUBWORDS = 0.01
ESCAPES = {r"\n": "\n", r"\t": "\t"}  # as a shell passes them on
MAX_NAMED = 4  # named tokens among single characters
NAMED = re.compile(r"<[^<>]+>|\[[^\[\]]+\]|xx[a-z]+")  # such as <pad>: no character, and no text leads to it
PRIVATE_USE = range(0xE000, 0xF900)  # characters that stand for named tokens


@dataclass(frozen=True)
class ForeignVocabulary:
    """Tokens by their ids in the foreign model.

    boundary  id of the token before and after every text; None: there is none
    unknown   id of the token for all others; None: there is none
    notes     what was chosen
    """

    path: Path
    sha256: str
    tokens: tuple[str, ...]
    units: Units
    boundary: int | None
    unknown: int | None
    notes: tuple[str, ...]

    @property
    def order(self) -> list[int | None]:
        """Foreign id of each id of the bundle; None: an added token."""
        special = [self.boundary, self.unknown]
        return [*special, *(index for index in range(len(self.tokens)) if index not in special)]


def read_vocabulary(
    path: Path, units: Units | None = None, boundary: str | None = None, unknown: str | None = None
) -> ForeignVocabulary:
    """Read a vocabulary. Raises Unimportable: no vocabulary, tokens that occur twice, an ambiguous boundary."""
    try:
        data = path.read_bytes()
        if other := kind_of_content(path.name, data):
            raise Unimportable(f"{path}: got {other.name}, expected UTF-8; {other.conversion(str(path))}")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise Unimportable(f"{path}: got {error.strerror or error}, expected a vocabulary") from error
    except UnicodeDecodeError as error:
        kind = likely_encoding(data)
        guess = kind.guess(str(path)) if kind else ""
        raise Unimportable(f"{path}: got bytes that are no UTF-8 ({error.reason} at {error.start}){guess}") from error
    tokens = _tokens(path, text)
    _check_distinct(path, tokens)
    found_boundary = _named(path, tokens, boundary, "--boundary") if boundary is not None else _boundary(path, tokens)
    found_unknown = _named(path, tokens, unknown, "--unknown") if unknown is not None else _unknown(path, tokens)
    if found_boundary is not None and found_boundary == found_unknown:
        raise Unimportable(f"--unknown: got {tokens[found_boundary]!r}, which is the boundary, expected another token")
    chosen = units or _guess(tokens)
    notes = _notes(tokens, found_boundary, found_unknown)
    if chosen == "chars":
        notes += tuple(
            f"{token!r} is read as {char!r}, a character for private use"
            for token, char in _stand_ins(_plain(tokens, found_boundary, found_unknown)).items()
        )
    if units is None:
        notes = (f"Units: {chosen}, by the tokens (--units says otherwise)", *notes)
    vocabulary = ForeignVocabulary(
        path, hashlib.sha256(data).hexdigest(), tuple(tokens), chosen, found_boundary, found_unknown, notes
    )
    _check_units(vocabulary)
    return vocabulary


def _tokens(path: Path, text: str) -> list[str]:
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return _from_json(path, json.loads(text, object_pairs_hook=lambda pairs: _once(path, pairs)))
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and deep lists
            if path.suffix.lower() == ".json":
                raise Unimportable(f"{path}: got {error}, expected JSON") from error
    elif path.suffix.lower() == ".json":
        raise Unimportable(f"{path}: got other than a list or an object, expected JSON of tokens")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    ended = lines if text.endswith("\n") else lines[:-1]
    if ended and all(line.endswith("\r") for line in ended):
        lines = [line.removesuffix("\r") for line in lines]
    if not lines:
        raise Unimportable(f"{path}: got an empty file, expected a token a line, or JSON")
    if "" in lines:
        place = lines.index("") + 1
        expected = "a token; as JSON, a vocabulary may have line ends too"
        raise Unimportable(f"{path}, line {place}: got an empty line, expected {expected}")
    return lines


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise Unimportable(f"{path}: {show(twice)}: got it twice, expected every token once")
    return dict(pairs)


def _from_json(path: Path, content: Any) -> list[str]:
    if isinstance(content, list):
        wrong = next((index for index, token in enumerate(content) if not isinstance(token, str) or not token), None)
        if wrong is not None:
            raise Unimportable(f"{path}: id {wrong}: got {show(content[wrong])}, expected a token: a text")
        return content
    for token, index in content.items():
        if type(index) is not int:
            raise Unimportable(f"{path}: {show(token)}: got {show(index)}, expected its id: {{token: id}}")
    by_id: dict[int, str] = {}
    for token, index in content.items():
        if index in by_id:
            raise Unimportable(f"{path}: id {index}: got {show(by_id[index])} and {show(token)}, expected one token")
        by_id[index] = token
    absent = next((index for index in range(len(by_id)) if index not in by_id), None)
    if absent is not None:
        raise Unimportable(f"{path}: got no token of id {absent}, expected every id from 0 to {len(by_id) - 1}")
    return [by_id[index] for index in range(len(by_id))]


def _check_distinct(path: Path, tokens: Sequence[str]) -> None:
    places: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in places:
            raise Unimportable(f"{path}: got {show(token)} as ids {places[token]} and {index}, expected it once")
        if any("\ud800" <= character <= "\udfff" for character in token):
            raise Unimportable(f"{path}: id {index}: got {token!a}, which has half of a character, expected a text")
        places[token] = index
    if not any(token for token in tokens):
        raise Unimportable(f"{path}: got no token, expected at least one")


def _named(path: Path, tokens: Sequence[str], token: str, option: str) -> int:
    token = token if token in tokens else ESCAPES.get(token, token)
    if token not in tokens:
        raise Unimportable(f"{option}: got {token!r}, which {path} does not have{did_you_mean(token, tokens)}")
    return tokens.index(token)


def _known(tokens: Iterable[str], names: Sequence[str]) -> list[str]:
    return [token for token in tokens if token.lower() in names]


def _boundary(path: Path, tokens: Sequence[str]) -> int | None:
    ends, beginnings = _known(tokens, ENDS), _known(tokens, BEGINNINGS)
    if len(ends) == 1 and not beginnings:
        return tokens.index(ends[0])
    if not ends and not beginnings:
        return None
    found = ", ".join((*beginnings, *ends))
    expected = "one token before and after every text: name it by --boundary"
    raise Unimportable(f"{path}: got {found}, which may begin or end texts, expected {expected}")


def _unknown(path: Path, tokens: Sequence[str]) -> int | None:
    found = _known(tokens, UNKNOWNS)
    if len(found) > 1:
        raise Unimportable(f"{path}: got {', '.join(found)}, expected one unknown token: name it by --unknown")
    return tokens.index(found[0]) if found else None


def _notes(tokens: Sequence[str], boundary: int | None, unknown: int | None) -> tuple[str, ...]:
    before = "The boundary of texts: "
    return (
        before + (repr(tokens[boundary]) if boundary is not None else "added, as the vocabulary has none"),
        "The unknown token: " + (repr(tokens[unknown]) if unknown is not None else "added, as the vocabulary has none"),
    )


def _guess(tokens: Sequence[str]) -> Units:
    return "chars" if sum(len(token) > 1 for token in tokens) <= min(MAX_NAMED, len(tokens) // 2) else "words"


def _plain(tokens: Sequence[str], boundary: int | None, unknown: int | None) -> list[str]:
    """Return the tokens but for these two."""
    return [token for index, token in enumerate(tokens) if index not in (boundary, unknown)]


def _stand_ins(plain: Sequence[str]) -> dict[str, str]:
    """Return the character that stands for each named token among single characters."""
    named = [token for token in plain if len(token) > 1 and NAMED.fullmatch(token)]
    free = (char for char in map(chr, PRIVATE_USE) if char not in plain)
    return dict(zip(named, free, strict=False))


def _check_units(vocabulary: ForeignVocabulary) -> None:
    plain = _plain(vocabulary.tokens, vocabulary.boundary, vocabulary.unknown)
    path = vocabulary.path
    if vocabulary.units == "chars":
        longer = next((token for token in plain if len(token) > 1 and not NAMED.fullmatch(token)), None)
        if longer is not None:
            raise Unimportable(
                f"{path}: got {show(longer)}, expected single characters (--units words is the other kind)"
            )
        return
    spaced = next((token for token in plain if token.split() != [token]), None)
    if spaced is not None:
        said = "tokens without white space, at which texts are split (--units chars is the other kind)"
        raise Unimportable(f"{path}: got {show(spaced)}, expected {said}")
    if sum(token.startswith(SUBWORDS) for token in plain) > MANY_SUBWORDS * len(plain):
        named = next(token for token in plain if token.startswith(SUBWORDS))
        raise Unimportable(f"{path}: got {show(named)}, a piece of words; expected whole words or characters")


def make_tokenizer(vocabulary: ForeignVocabulary) -> Tokenizer:
    """Return the tokenizer of a vocabulary: texts are split at white space, or into characters, in NFC."""
    is_chars = vocabulary.units == "chars"
    names = [
        END if is_chars else SPOKEN_END,
        UNKNOWN if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown],
    ]
    plain = _plain(vocabulary.tokens, vocabulary.boundary, vocabulary.unknown)
    if is_chars:
        stand_ins = _stand_ins(plain)
        plain = [stand_ins.get(token, token) for token in plain]
    entries = [*names, *_in_normal_form(plain, {*names, *plain}, single=is_chars)]
    model = WordLevel({token: index for index, token in enumerate(entries)}, unk_token=names[1])
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    if is_chars:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    else:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, TokenizerKind.CHAR if is_chars else TokenizerKind.WORD)


def _in_normal_form(tokens: list[str], taken: set[str], *, single: bool) -> list[str]:
    """Return tokens in NFC, the form of all texts; one whose form is another token stays, and no text leads to it."""
    entries = []
    for token in tokens:
        normal = unicodedata.normalize("NFC", token)
        if normal != token and normal not in taken and (len(normal) == 1 or not single):
            taken.add(normal)
            entries.append(normal)
        else:
            entries.append(token)
    return entries
