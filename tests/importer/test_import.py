"""Test imports against the torch models that the weights came from: log-probabilities of texts, within 1e-4."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file, save_model
from torch import nn

from meari.cli.main import group
from meari.export.bundle import Run
from meari.export.errors import BundleExists, Unimportable
from meari.importer.bundle import import_model, read_foreign
from meari.importer.source import Source
from meari.importer.vocabulary import read_vocabulary
from meari.runtime.inspection import inspect_bundle
from tests.export.serving import generate, score, served
from tests.importer.foreign_models import (
    CHARS,
    PROJECTED,
    TEXTS,
    WORDS,
    AwdLstm,
    CharRnn,
    ProjectedLstm,
    WordLanguageModel,
    logprobs_of,
    make_models,
    randomised,
)

MODELS = {
    f"{kind}, {layers} layers, {'tied' if tied else 'untied'}": (kind, layers, tied)
    for kind in ("RNN_TANH", "GRU", "LSTM")
    for layers in (1, 3)
    for tied in (True, False)
}


def word_model(kind: str, layers: int, *, tied: bool, bias: bool = True) -> nn.Module:
    model = WordLanguageModel(kind, len(WORDS), 12, 12 if tied else 15, layers, tied=tied, bias=bias)
    return randomised(model)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS) + "\n", "utf-8")
    return path


@pytest.fixture
def chars(tmp_path: Path) -> Path:
    path = tmp_path / "chars.json"
    path.write_text(json.dumps(CHARS), "utf-8")
    return path


def imported(model: nn.Module, vocabulary: Path, **more: Any) -> Run:
    """Import a model by its state dict, as far as the checks of the export."""
    path = vocabulary.with_name("model.pt")
    torch.save(model.float().state_dict(), path)
    return read_foreign(Source(path, vocabulary, **more), "model")


def assert_same(run: Run, model: nn.Module, vocabulary: Sequence[str], text: str, tokens: Sequence[str]) -> None:
    """Compare the distributions after the boundary and each token of a text with those of the torch model."""
    network, tokenizer = run.checkpoint.model, run.checkpoint.tokenizer
    ids = tokenizer.encode(text)
    with torch.inference_mode():
        hidden, _ = network(torch.tensor([[0, *ids]]), network.initial_state(1))
        got = network.logits(hidden[0]).log_softmax(-1).double()
    assert torch.allclose(got.exp().sum(-1), torch.ones(len(got), dtype=torch.float64), atol=1e-5)
    names = [tokenizer.decode([index]) for index in range(tokenizer.vocabulary_size)]
    known = [index for index, name in enumerate(names) if name in vocabulary]
    if "<eos>" in vocabulary:
        expected = logprobs_of(model, vocabulary, ["<eos>", *tokens])
        ends = expected[:, vocabulary.index("<eos>")]
        assert (got[:, 0] - ends).abs().max() < 1e-4
    else:
        expected, got = logprobs_of(model, vocabulary, tokens), got[1:]
        assert got[:, 0].max() < -30
    columns = [vocabulary.index(names[index]) for index in known]
    assert (got[:, known] - expected[:, columns]).abs().max() < 1e-4
    assert len(known) >= len(vocabulary) - 1


@pytest.mark.parametrize(("kind", "layers", "tied"), MODELS.values(), ids=MODELS)
def test_word_language_model_keeps_its_distributions(words: Path, kind: str, layers: int, tied: bool) -> None:
    model = word_model(kind, layers, tied=tied)
    run = imported(model, words)
    assert run.has_ends
    for text in TEXTS:
        tokens = ["<unk>" if token == "<eos>" else token for token in text.split()]
        assert_same(run, model, WORDS, text, tokens)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_char_rnn_starts_from_zeros_behind_an_added_boundary(chars: Path, kind: str, layers: int) -> None:
    model = randomised(CharRnn(kind, len(CHARS), 11, layers))
    run = imported(model, chars)
    assert not run.has_ends
    text = "the sea,\nit's an echo."
    assert_same(run, model, CHARS, text, list(text))
    (unknown,) = run.checkpoint.tokenizer.encode("Z")
    assert unknown == 1


@pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
@pytest.mark.parametrize("tied", [True, False])
def test_model_of_words_without_eos_starts_from_zeros(tmp_path: Path, kind: str, tied: bool) -> None:
    vocabulary = WORDS[1:]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(vocabulary))
    size = 8 if tied else 6
    model = randomised(WordLanguageModel(kind, len(vocabulary), 8, size, 3, tied=tied))
    run = imported(model, path)
    assert_same(run, model, vocabulary, TEXTS[0], TEXTS[0].split())


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_awd_lstm_has_layers_of_several_sizes_and_dropped_weights(words: Path, layers: int, tied: bool) -> None:
    model = randomised(AwdLstm(len(WORDS), 9, 14, layers, tied=tied))
    run = imported(model, words)
    assert_same(run, model, WORDS, TEXTS[0], TEXTS[0].split())
    assert run.imported is not None
    assert run.imported["layout"] == "AWD-LSTM"


def test_awd_lstm_of_fastai_reads_the_raw_weights_beside_dropped_ones(words: Path) -> None:
    model = randomised(AwdLstm(len(WORDS), 9, 14, 2))
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("module.weight_hh_l0_raw", "weight_hh_l0_raw")  # noqa: PLW2901
        state[("1." if name.startswith("decoder") else "0.") + name] = tensor
    for layer in range(2):
        state[f"0.rnns.{layer}.module.weight_hh_l0"] = state[f"0.rnns.{layer}.weight_hh_l0_raw"] * 0
    state["0.encoder_dp.emb.weight"] = state["0.encoder.weight"]
    torch.save(state, words.with_name("fastai.pt"))
    run = read_foreign(Source(words.with_name("fastai.pt"), words), "model")
    assert_same(run, model, WORDS, TEXTS[0], TEXTS[0].split())


@pytest.mark.parametrize(("size", "tied"), [(4, False), (4, True), (9, True), (7, True)])
@pytest.mark.parametrize("layers", [1, 3])
def test_projections_are_folded_into_what_uses_them(words: Path, size: int, tied: bool, layers: int) -> None:
    model = randomised(ProjectedLstm(len(WORDS), 9, 11, layers, size=size, tied=tied))
    mapping = words.with_name("mapping.toml")
    mapping.write_text(PROJECTED)
    run = imported(model, words, mapping=mapping)
    assert_same(run, model, WORDS, TEXTS[0], TEXTS[0].split())


def test_layers_without_biases_have_biases_of_zero(words: Path) -> None:
    for kind in ("RNN_TANH", "GRU", "LSTM"):
        model = word_model(kind, 2, tied=False, bias=False)
        assert_same(imported(model, words), model, WORDS, TEXTS[0], TEXTS[0].split())


def test_decoder_without_bias_has_a_bias_of_zero(words: Path) -> None:
    model = word_model("GRU", 1, tied=False)
    assert isinstance(model.decoder, nn.Linear)
    model.decoder.bias = None  # type: ignore[assignment]
    assert_same(imported(model, words), model, WORDS, TEXTS[0], TEXTS[0].split())


def test_chosen_boundary_is_a_character_of_the_vocabulary(chars: Path) -> None:
    model = randomised(CharRnn("lstm", len(CHARS), 8, 2))
    run = imported(model, chars, boundary="\n")
    expected = logprobs_of(model, CHARS, ["\n", *"an echo"])
    tokenizer, network = run.checkpoint.tokenizer, run.checkpoint.model
    ids = tokenizer.encode("an echo")
    with torch.inference_mode():
        hidden, _ = network(torch.tensor([[0, *ids]]), network.initial_state(1))
        got = network.logits(hidden[0]).log_softmax(-1)
    assert (got[:, 0] - expected[:, CHARS.index("\n")]).abs().max() < 1e-4
    assert run.has_ends
    assert tokenizer.encode("\n") == [1]


NAMED = ("<pad>", "<sos>", "<eos>", "<unk>")


@pytest.mark.parametrize("named", [NAMED[:1], NAMED[2:], NAMED, (*NAMED[2:], "[MASK]", "xxpad")])
def test_named_tokens_among_characters_keep_their_probabilities_and_no_text_leads_to_them(
    tmp_path: Path, named: tuple[str, ...]
) -> None:
    vocabulary = (*named[:2], *CHARS, *named[2:])
    path = tmp_path / "chars.json"
    path.write_text(json.dumps(vocabulary))
    model = randomised(CharRnn("gru", len(vocabulary), 9, 2))
    told: list[str] = []
    boundary = "<eos>" if "<sos>" in named else None
    torch.save(model.float().state_dict(), tmp_path / "model.pt")
    run = read_foreign(Source(tmp_path / "model.pt", path, boundary=boundary), "model", told.append)
    tokenizer, network = run.checkpoint.tokenizer, run.checkpoint.model
    text = "an echo, "
    rows = logprobs_of(model, vocabulary, [*(["<eos>"] if "<eos>" in named else []), *text])
    with torch.inference_mode():
        hidden, _ = network(torch.tensor([[0, *tokenizer.encode(text)]]), network.initial_state(1))
        got = network.logits(hidden[0]).log_softmax(-1).double()[-len(rows) :]
    order = read_vocabulary(path, boundary=boundary).order
    columns = [place for place, index in enumerate(order) if index is not None]
    assert (got[:, columns] - rows[:, [order[place] for place in columns]]).abs().max() < 1e-4
    others = [token for token in named if token not in ("<eos>", "<unk>")]
    for token in others:
        assert all(vocabulary[order[found] or 0] not in named or found == 1 for found in tokenizer.encode(token))
        assert any(line.startswith(f"{token!r} is read as") for line in told)
    assert sum("private use" in line for line in told) == len(others)


def test_bundle_with_named_tokens_among_characters_is_served(tmp_path: Path) -> None:
    path = tmp_path / "chars.json"
    path.write_text(json.dumps((*NAMED, *CHARS)))
    torch.save(randomised(CharRnn("lstm", 4 + len(CHARS), 9, 1)).state_dict(), tmp_path / "model.pt")
    import_model(Source(tmp_path / "model.pt", path, boundary="<eos>"), tmp_path / "echo")
    assert inspect_bundle(tmp_path / "echo").problem == ""


@pytest.mark.parametrize("kind", ["RNN_TANH", "GRU", "LSTM"])
def test_held_out_text_measures_the_bundle_and_makes_it_int8_where_that_passes(words: Path, kind: str) -> None:
    model = word_model(kind, 2, tied=False)
    torch.save(model.state_dict(), words.with_name("model.pt"))
    text = words.with_name("held-out.txt")
    text.write_text("".join(f"{line}\n" for line in TEXTS) * 8, "utf-8")
    arguments = ["import", words.with_name("model.pt"), words.with_name("echo"), "--vocabulary", words, "--text", text]
    done = CliRunner().invoke(group, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    described = json.loads(done.stdout)
    assert described["precision"] == ("fp32" if "No int8 bundle: " in done.stderr else "int8")
    tokens = [["<eos>", *line.replace("<eos>", "<unk>").split(), "<eos>"] for line in TEXTS]
    nats = sum(
        -float(row[WORDS.index(after if after in WORDS else "<unk>")])
        for line in tokens
        for row, after in zip(logprobs_of(model, WORDS, line[:-1]), line[1:], strict=True)
    )
    perplexity = np.exp(nats / sum(len(line) - 1 for line in tokens))
    figures = json.loads((words.with_name("echo") / "manifest.json").read_text())["figures"]
    assert figures["validation"]["perplexity"] == pytest.approx(perplexity, rel=0.01)
    assert inspect_bundle(words.with_name("echo")).problem == ""


def test_int8_that_costs_too_much_leaves_float32_and_a_short_text_is_refused(chars: Path) -> None:
    model = randomised(CharRnn("lstm", len(CHARS), 10, 2))  # the added boundary has large weights beside small ones
    torch.save(model.state_dict(), chars.with_name("model.pt"))
    text = chars.with_name("held-out.txt")
    text.write_text("the sea,\nit's an echo.\n" * 20)
    told: list[str] = []
    source = Source(chars.with_name("model.pt"), chars, text=text)
    import_model(source, chars.with_name("echo"), tell=told.append)
    manifest = json.loads((chars.with_name("echo") / "manifest.json").read_text())
    assert any(line.startswith("No int8 bundle: ") for line in told) == (manifest["precision"] == "fp32")
    text.write_text("short")
    with pytest.raises(Unimportable, match=r"--text: got \d+ tokens, expected at least 64"):
        import_model(source, chars.with_name("other"))
    assert not chars.with_name("other").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted_and_it_is_said(words: Path, dtype: torch.dtype) -> None:
    model = word_model("LSTM", 1, tied=False)
    path = words.with_name("model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, path)
    told: list[str] = []
    run = read_foreign(Source(path, words), "model", told.append)
    model.load_state_dict({name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()})
    assert_same(run, model, WORDS, TEXTS[0], TEXTS[0].split())
    assert f"Converted to float32: weights of {str(dtype).removeprefix('torch.')}" in told


def test_files_of_every_kind_give_the_same_model(words: Path) -> None:
    model = word_model("GRU", 2, tied=True)
    state, folder = model.state_dict(), words.parent
    strided = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in state.items()}
    torch.save(strided, folder / "strided.pt")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "loss": torch.tensor(1.5), "model_state_dict": state}, folder / "checkpoint.pt")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "parallel.pt")
    torch.save({"state_dict": {f"_orig_mod.model.{n}": t for n, t in state.items()}}, folder / "wrapped.ckpt")
    torch.save({n.replace("rnn.", "rnn._orig_mod."): t for n, t in state.items()}, folder / "part-compiled.pt")
    torch.save({("_orig_mod." if "rnn" in n else "") + n: t for n, t in state.items()}, folder / "part-named.pt")
    save_model(model, str(folder / "shared.safetensors"))
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "copied.safetensors")
    once = {name: tensor for name, tensor in state.items() if name != "decoder.weight"}
    save_file(once, folder / "once.safetensors")
    for path in folder.iterdir():
        if path != words:
            run = read_foreign(Source(path, words, tied=path.name.startswith("once")), "model")
            assert_same(run, model, WORDS, TEXTS[0], TEXTS[0].split())
            assert "output_bias" in run.checkpoint.model.state_dict(), f"{path.name}: tied"


def test_script_imports_a_model_of_each_layout_and_each_serves_the_torch_models_figures(tmp_path: Path) -> None:
    made = make_models(tmp_path)
    for name, (weights, vocabulary) in made.items():
        arguments = [
            "import",
            str(weights),
            str(tmp_path / "bundles" / name),
            "--vocabulary",
            str(vocabulary),
            "--json",
        ]
        result = CliRunner().invoke(group, arguments)
        assert result.exit_code == 0, result.output
        described = json.loads(result.stdout)
        assert described["figures"].keys() == {"measured_on", "precision_check"}
        assert described["corpus"] == {"has_ends": name != "names"}
    models = {
        "wiki": (WordLanguageModel("LSTM", len(WORDS), 12, 12, 2, tied=True), WORDS),
        "names": (CharRnn("gru", len(CHARS), 10, 2), CHARS),
        "awd": (AwdLstm(len(WORDS), 9, 14, 3), WORDS),
    }
    for name, (model, tokens) in models.items():
        _check_served(tmp_path / "bundles" / name, randomised(model), tokens)
    manifest = json.loads((tmp_path / "bundles" / "wiki" / "manifest.json").read_text())
    assert manifest["training"]["imported"]["weights"] == "wiki.pt"
    assert manifest["training"]["imported"]["boundary"] == "<eos>"
    card = (tmp_path / "bundles" / "wiki" / "README.md").read_text()
    assert "that was trained elsewhere" in card
    assert "None were measured." in card


def _check_served(folder: Path, model: nn.Module, vocabulary: Sequence[str]) -> None:
    assert inspect_bundle(folder).problem == ""
    has_end = "<eos>" in vocabulary
    text = TEXTS[0] if has_end else "the echo\nanswers."
    tokens = text.split() if has_end else list(text)
    with served(folder) as loaded:
        ids = loaded.bundle.tokenizer.encode(text)
        (found,) = score(loaded, [ids], add_end=has_end)
        got = found.logprobs
        assert np.isfinite(generate(loaded, ids, 5, _greedy()).logprobs).all()
    unknown = [token if token in vocabulary else "<unk>" for token in tokens]
    wanted = [*unknown, "<eos>"] if has_end else tokens[1:]
    rows = logprobs_of(model, vocabulary, ["<eos>", *tokens] if has_end else tokens)
    expected = [float(row[vocabulary.index(token)]) for row, token in zip(rows, wanted, strict=False)]
    assert np.abs(np.array(got if has_end else got[1:]) - expected).max() < 1e-4


def _greedy() -> Any:
    from meari.runtime.engine import Sampling

    return Sampling(temperature=0.0)


def test_scores_of_the_command_line_are_those_of_torch(words: Path) -> None:
    model = word_model("RNN_TANH", 1, tied=False)
    torch.save(model.float().state_dict(), words.with_name("model.pt"))
    bundles = words.parent / "bundles"
    import_model(Source(words.with_name("model.pt"), words), bundles / "echo")
    with pytest.raises(BundleExists):
        import_model(Source(words.with_name("model.pt"), words), bundles / "echo")
    lines = words.with_name("texts.txt")
    lines.write_text("\n".join(TEXTS) + "\n", "utf-8")
    command = [sys.executable, "-m", "meari.cli.main", "score", str(lines), "--bundles", str(bundles), "--tokens"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line, text in zip(output.splitlines(), TEXTS, strict=True):
        record = json.loads(line)
        tokens = ["<unk>" if token not in WORDS or token == "<eos>" else token for token in text.split()]
        rows = logprobs_of(model, WORDS, ["<eos>", *tokens])
        expected = sum(float(row[WORDS.index(token)]) for row, token in zip(rows, [*tokens, "<eos>"], strict=True))
        assert abs(record["logprob"] - expected) < 1e-3


def test_default_folder_has_the_name_of_the_weights(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(words.parent)
    torch.save(word_model("GRU", 1, tied=True).state_dict(), "my model.pt")
    result = CliRunner().invoke(group, ["import", "my model.pt", "--vocabulary", "words.txt"])
    assert result.exit_code == 0, result.output
    assert (words.parent / "bundles" / "my-model" / "manifest.json").exists()
    assert "Layout: word_language_model or char-rnn.pytorch; gru, 1 layer" in result.output
    assert "The boundary of texts: '<eos>'" in result.output


def test_rnn_is_taken_as_tanh_and_relu_is_refused(words: Path) -> None:
    told: list[str] = []
    torch.save(word_model("RNN_RELU", 1, tied=False).state_dict(), words.with_name("model.pt"))
    read_foreign(Source(words.with_name("model.pt"), words), "model", told.append)
    assert any("taken as tanh" in line for line in told)
    with pytest.raises(Unimportable, match=r"--activation: got relu, expected tanh"):
        read_foreign(Source(words.with_name("model.pt"), words, activation="relu"), "model")
