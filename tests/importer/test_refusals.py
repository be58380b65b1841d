"""Test what an import refuses: weights, names, vocabularies and mappings, each by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meari.export.errors import Unimportable
from meari.importer.bundle import import_model, read_foreign
from meari.importer.source import Source
from meari.importer.vocabulary import make_tokenizer, read_vocabulary
from tests.importer.foreign_models import PROJECTED, WORDS, WordLanguageModel, randomised

State = dict[str, Tensor]
V = len(WORDS)


def state_of(kind: str = "LSTM", **more: Any) -> State:
    return randomised(WordLanguageModel(kind, V, 8, 10, 2, **more)).state_dict()


def refusal(folder: Path, state: object, vocabulary: object = WORDS, **more: Any) -> str:
    """Return the message with which a file of weights is refused."""
    weights, tokens = folder / "model.pt", folder / "vocabulary.json"
    torch.save(state, weights)
    if isinstance(vocabulary, str):
        tokens = folder / "vocabulary.txt"
        tokens.write_text(vocabulary, "utf-8", newline="")
    else:
        tokens.write_text(json.dumps(vocabulary))
    with pytest.raises(Unimportable) as error:
        read_foreign(Source(weights, tokens, **more), "model")
    return str(error.value)


def without(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


def with_(name: str, tensor: Tensor) -> Callable[[State], object]:
    return lambda state: state.update({name: tensor})


HOSTILE = {
    "missing recurrent weights": (without("rnn.weight_hh_l1"), r"^rnn.weight_hh_l1: missing"),
    "missing bias": (without("rnn.bias_hh_l1"), r"^rnn.bias_hh_l1: missing"),
    "missing layer": (
        lambda state: [state.pop(name) for name in [*state] if name.endswith("_l0")],
        r"got the layers 1, expected",
    ),
    "missing embedding": (without("encoder.weight"), r"^encoder.weight: missing.*--tied"),
    "missing output": (without("decoder.weight"), r"^decoder.weight: missing.*--tied"),
    "unknown name": (
        with_("decoder.weigth", torch.ones(2)),
        r"^decoder.weigth: got a name that .* does not have \(did you mean decoder.weight\?\)",
    ),
    "bidirectional": (with_("rnn.weight_ih_l0_reverse", torch.ones(2)), r"^rnn.weight_ih_l0_reverse: .*bidirectional"),
    "attention": (with_("attn.in_proj_weight", torch.ones(2)), r"^attn.in_proj_weight: .*attention"),
    "normalisation": (with_("norm.weight", torch.ones(2)), r"^norm.weight: .*normalisation"),
    "not finite": (
        with_("decoder.bias", torch.full((V,), np.nan)),
        rf"^decoder.bias: got {V} numbers that are not fin",
    ),
    "beyond float32": (with_("decoder.bias", torch.full((V,), 1e300, dtype=torch.float64)), r"^decoder.bias: .*finite"),
    "integers": (with_("rnn.bias_ih_l0", torch.ones(40, dtype=torch.int8)), r"^rnn.bias_ih_l0: got int8 numbers"),
    "sparse": (with_("decoder.weight", torch.eye(V, 10).to_sparse()), r"^decoder.weight: got sparse numbers"),
    "wrong input size": (
        with_("rnn.weight_ih_l1", torch.ones(40, 9)),
        r"^rnn.weight_ih_l1: got the shape \[40, 9\], expected \[40, 10\]: 4 gates of 10 units by the 10 numbers below",
    ),
    "wrong gates": (with_("rnn.weight_hh_l0", torch.ones(20, 10)), r"^rnn.weight_hh_l0: got the shape \[20, 10\], exp"),
    "wrong output": (
        with_("decoder.weight", torch.ones(V, 9)),
        rf"^decoder.weight: got the shape \[{V}, 9\], expected \[{V}, 10\]",
    ),
    "one dimension": (with_("encoder.weight", torch.ones(V)), rf"^encoder.weight: got the shape \[{V}\], expected"),
    "no numbers": (
        with_("decoder.bias", torch.ones(V, device="meta")),
        r"^decoder.bias: got a tensor on the meta device",
    ),
    "no name": (lambda state: state.update({1: torch.ones(2)}), r"model.pt: 1: got a int as a name, expected a text"),
    "name of many digits": (
        with_(f"rnn.weight_ih_l{'9' * 5000}"[:190], torch.ones(2)),
        r"a name that .* does not have",
    ),
    "name of a leading zero": (with_("rnn.weight_ih_l01", torch.ones(2)), r"^rnn.weight_ih_l01: got a name that"),
    "name that commands a terminal": (
        with_("rnn\x1b[2J\nmeari: done", torch.ones(2)),
        r"got the name 'rnn\\x1b\[2J\\nmeari: done' of 19 characters",
    ),
    "endless name": (
        with_("x" * 5000, torch.ones(2)),
        r"got the name 'x{80}' of 5,000 characters, expected at most 200",
    ),
    "numbers that are not in the file": (
        with_("rnn.weight_hh_l0", torch.ones(1).expand(4 << 30, 1 << 30)),
        r"^rnn.weight_hh_l0: got the shape \[4294967296, 1073741824\] of numbers that repeat",
    ),
    "float8": (with_("decoder.bias", torch.ones(V).to(torch.float8_e4m3fn)), r"^decoder.bias: got float8_e4m3fn num"),
    "no tensor": (lambda state: state.update(epoch=3), r"model.pt: epoch: got a int, expected a tensor"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, change: Callable[[State], object], message: str
) -> None:
    state = dict(state_of())
    change(state)
    assert re.search(message, refusal(tmp_path, state))


def test_other_networks_are_refused_by_their_names(tmp_path: Path) -> None:
    both = nn.LSTM(4, 5, bidirectional=True).state_dict()
    assert "bidirectional" in refusal(tmp_path, {f"lstm.{name}": tensor for name, tensor in both.items()})
    assert "attention" in refusal(tmp_path, nn.TransformerEncoderLayer(8, 2).state_dict())
    qrnn = {"encoder.weight": torch.ones(V, 4), "rnns.0.linear.module.weight_raw": torch.ones(12, 4)}
    assert "QRNN" in refusal(tmp_path, qrnn)
    message = refusal(tmp_path, {"emb.weight": torch.ones(V, 4), "lstm.weight_ih_l0": torch.ones(16, 4)})
    assert "emb.weight, lstm.weight_ih_l0" in message
    assert "AWD-LSTM" in message
    assert "--mapping" in message


def test_pickled_modules_are_refused_with_the_line_that_saves_a_state_dict(tmp_path: Path) -> None:
    message = refusal(tmp_path, WordLanguageModel("GRU", V, 8, 8, 1))
    assert "tests.importer.foreign_models.WordLanguageModel" in message
    assert ".state_dict(), " in message
    assert "import torch; torch.save(torch.load(" in message
    assert "expected a state dict" in refusal(tmp_path, [torch.ones(2)])
    assert "expected tensors by their names" in refusal(tmp_path, {"epoch": 3})
    assert "several state dicts (state_dict, model)" in refusal(
        tmp_path, {"model": state_of(), "state_dict": state_of()}
    )


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    torch.save(state_of(), tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00\x10\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "empty.pt").touch()
    torch.save(state_of(), tmp_path / "other-protocol.pt", pickle_protocol=4)
    (tmp_path / "three-bytes.pt").write_bytes(content[:3])
    for name in ("other-protocol.pt", "three-bytes.pt"):
        anew = f'torch.load({str(tmp_path / name)!r}, map_location="cpu", weights_only=False), '
        with pytest.raises(Unimportable, match=f"damaged, or pickled by another protocol.*{re.escape(anew)}"):
            read_foreign(Source(tmp_path / name, tmp_path / "words.txt"), "model")
    for name in ("cut.pt", "cut.safetensors", "text.pt", "empty.pt", "absent.pt", "."):
        with pytest.raises(Unimportable, match=re.escape(str(tmp_path / name))):
            read_foreign(Source(tmp_path / name, tmp_path / "words.txt"), "model")


VOCABULARIES = {
    "too few": (WORDS[:-1], rf"^encoder.weight: got the shape \[{V}, 8\], expected \[{V - 1}, any\]: a row for each"),
    "twice": ([*WORDS[:-1], "sea"], r'got "sea" as ids 2 and 13'),
    "no text": ([*WORDS[:-1], 5], r"id 13: got 5, expected a token"),
    "ids with a gap": ({token: index + (index > 3) for index, token in enumerate(WORDS)}, r"no token of id 4"),
    "two tokens of an id": ({**{token: index for index, token in enumerate(WORDS)}, "x": 2}, r"id 2: got"),
    "no ids": ({token: token for token in WORDS}, r'"<eos>": got "<eos>", expected its id'),
    "empty line": ("\n".join([*WORDS[:2], "", *WORDS[3:]]), r"line 3: got an empty line"),
    "empty": ("", r"got an empty file"),
    "two ends": ([*WORDS[:-1], "</s>"], r"got <eos>, </s>, which may begin or end texts.*--boundary"),
    "beginning and end": ([*WORDS[:-1], "<s>"], r"got <s>, <eos>, .*--boundary"),
    "two unknown ones": ([*WORDS[:-1], "<oov>"], r"got <unk>, <oov>.*--unknown"),
    "a control character": ([*WORDS[:-1], "a\x9b b"], r'got "a\\x9b b", exp'),
    "words with spaces": ([*WORDS[:-1], "two words"], r'got "two words", expected tokens without white space'),
    "pieces of words": ([*WORDS[:-2], "\u2581the", "\u2581sea"], r"a piece of words"),
}


def test_vocabulary_in_a_legacy_encoding_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_bytes("바다\n하늘\n나무\n".encode("cp949"))
    with pytest.raises(Unimportable, match=f"it looks like CP949 .*: `iconv -f CP949 -t UTF-8 {path}` converts it"):
        read_vocabulary(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_vocabulary_in_utf_16_is_refused_with_the_command_that_converts_it(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_bytes("\r\n".join(WORDS).encode(encoding))
    with pytest.raises(Unimportable, match=f"got UTF-16.*, expected UTF-8; `iconv -f UTF-16.* {path}` converts it"):
        read_vocabulary(path)


@pytest.mark.parametrize("end", ["", "\r\n"])
def test_vocabulary_of_windows_has_the_same_tokens_with_and_without_a_last_line_end(tmp_path: Path, end: str) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_bytes(("\r\n".join(WORDS) + end).encode("utf-8-sig"))
    assert read_vocabulary(path).tokens == WORDS


@pytest.mark.parametrize(("vocabulary", "message"), VOCABULARIES.values(), ids=VOCABULARIES)
def test_vocabularies_that_do_not_fit_are_refused(tmp_path: Path, vocabulary: object, message: str) -> None:
    assert re.search(message, refusal(tmp_path, state_of(), vocabulary))


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = state_of()
    assert "--boundary: got '<eso>'" in (message := refusal(tmp_path, state, boundary="<eso>"))
    assert "did you mean <eos>?" in message
    assert "--unknown: got '<eos>', which is the boundary" in refusal(tmp_path, state, unknown="<eos>")
    assert 'got "the", expected single characters' in refusal(tmp_path, state, units="chars")
    assert "--tied: got decoder.weight, which is not the embedding" in refusal(tmp_path, state, tied=True)
    assert "the layers are of a lstm" in refusal(tmp_path, state, activation="tanh")


MAPPINGS = {
    "unknown key": (PROJECTED.replace("output =", "outptu ="), r"outptu: got an unknown key, .*did you mean output\?"),
    "no layers": ('embedding = "e"', r"layers: got nothing, expected a name or a list of names"),
    "no name": ('embedding = 3\nlayers = "{weight}"', r"embedding: got 3, expected a name"),
    "no pattern": ('embedding = "e"\nlayers = "rnn.{wieght}_l{layer}"', r"layers: got .*expected a pattern with"),
    "no TOML": ("embedding =", r"expected TOML"),
    "absent name": (PROJECTED.replace("lookup", "encoder"), r"expected those of at least one layer"),
}


@pytest.mark.parametrize(("text", "message"), MAPPINGS.values(), ids=MAPPINGS)
def test_mappings_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(text)
    assert re.search(message, refusal(tmp_path, state_of(), mapping=mapping))


def test_refused_import_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(WORDS[:-1]))
    torch.save(state_of(), tmp_path / "model.pt")
    with pytest.raises(Unimportable):
        import_model(Source(tmp_path / "model.pt", tmp_path / "words.txt"), tmp_path / "bundles" / "echo")
    assert not (tmp_path / "bundles").exists()


def test_vocabulary_is_read_in_three_forms_and_guessed(tmp_path: Path) -> None:
    lines, table, listed = (tmp_path / name for name in ("a.txt", "b.json", "c.json"))
    lines.write_text("\r\n".join([*WORDS, ""]), newline="")
    table.write_text("\ufeff" + json.dumps({token: index for index, token in reversed([*enumerate(WORDS)])}))
    listed.write_text(json.dumps(WORDS))
    found = [read_vocabulary(path) for path in (lines, table, listed)]
    assert [each.tokens for each in found] == [WORDS] * 3
    assert {(each.units, each.boundary, each.unknown) for each in found} == {("words", 0, 3)}
    lines.write_text("<eos>\n \na\n\u2028\n[\n", newline="")
    chars = read_vocabulary(lines)
    assert (chars.units, chars.tokens) == ("chars", ("<eos>", " ", "a", "\u2028", "["))


def test_no_text_becomes_the_boundary_and_entries_are_brought_into_nfc(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(["the", "cafe\u0301", "<unk>", "<eos>", "K", "\u212a"]))
    tokenizer = make_tokenizer(read_vocabulary(path))
    assert tokenizer.end_token == "<|end of text|>"
    assert tokenizer.encode("the <eos> <|end of text|> <unk>") == [2, 1, 1, 1, 1, 1]
    assert tokenizer.encode("cafe\u0301 caf\u00e9 K \u212a") == [3, 3, 4, 4]
    assert tokenizer.vocabulary_size == 6
