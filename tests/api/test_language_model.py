"""Test the Python API: the same methods and the same bits in this process and at a service."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections import UserString
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

import meari
from meari.api.local import CHUNK_CHARS, LIST_CHARS, SHORT_LIST_CHARS
from meari.errors import NotReady
from tests.patience import PATIENCE, until
from tests.runtime.spelling_bundle import byte_tokenizer, word_tokenizer, write_spelling_bundle
from tests.runtime.tiny_bundle import write_tiny_bundle
from tests.service.running import ROOT, running_server

STATE_KEY = "s" * 40
WORDS = ["good", "day", ",", "world"]
TEXTS = ["abc", "", "bcd ab", "abab", "x"]


class OwnText(str):
    """A text whose type JSON does not know."""

    __slots__ = ()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_tiny_bundle(folder / "letters", peak=3.0, decay=0.01)
    write_spelling_bundle(folder / "bytes", byte_tokenizer(), "bpe", byte_tokenizer().encode("é😀한!").ids, peak=2.0)
    write_spelling_bundle(folder / "words", word_tokenizer(WORDS), "word", [2, 3, 4, 5], peak=2.0)
    (folder / "DEFAULT").write_text("letters\n")
    return folder


@pytest.fixture(scope="module")
def url(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(
        tmp_path_factory.mktemp("service"), bundles=bundles, workers=1, state_key=STATE_KEY, api_keys="k" * 32
    ) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module", params=["here", "service"])
def lm(request: pytest.FixtureRequest, bundles: Path) -> Iterator[meari.LanguageModel]:
    if request.param == "here":
        with meari.load(bundles, state_key=STATE_KEY) as model:
            yield model
    else:
        with meari.load(request.getfixturevalue("url"), key="k" * 32) as model:
            yield model


@pytest.fixture(scope="module")
def local(bundles: Path) -> Iterator[meari.LanguageModel]:
    with meari.load(bundles / "letters", state_key=STATE_KEY) as model:
        yield model


def test_import_loads_neither_torch_nor_flask_nor_numpy_and_scoring_no_torch_nor_flask(bundles: Path) -> None:
    code = f"""
import sys, time, meari
assert not {{"numpy", "onnxruntime", "msgspec"}} & set(sys.modules)
import msgspec, numpy, onnxruntime, tokenizers
imported = time.process_time()
meari.load({str(bundles)!r}).generate("ab", max_tokens=2)
meari.load({str(ROOT / "bundles" / "shakespeare-lstm")!r}).score("To be")
assert not {{"torch", "flask", "werkzeug", "gunicorn", "click", "pandas"}} & set(sys.modules)
assert time.process_time() < 9 * imported, "two bundles take much longer than the libraries"
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_every_figure_has_the_same_bits_here_and_at_a_service(
    lm: meari.LanguageModel, local: meari.LanguageModel
) -> None:
    assert lm.name == local.name == "letters"
    for base in ("e", 2, "10"):
        assert lm.score(TEXTS, log_base=base).tolist() == local.score(TEXTS, log_base=base).tolist()
    assert lm.score("abc", context="ab", end=False) == local.score("abc", context="ab", end=False)
    assert np.array_equal(lm.perplexity(TEXTS, end=False), local.perplexity(TEXTS, end=False), equal_nan=True)
    assert np.array_equal(lm.bits_per_char(TEXTS), local.bits_per_char(TEXTS), equal_nan=True)
    for by in ("token", "word", "char"):
        assert lm.surprisal("abc ab x", by) == local.surprisal("abc ab x", by)
    assert lm.tokenize("abx") == local.tokenize("abx")
    assert lm.detokenize(lm.tokenize("abc")) == "abc"
    assert {name: lm.description[name] for name in local.description} == local.description


def test_text_alone_gives_a_float_and_a_list_an_array(lm: meari.LanguageModel) -> None:
    alone, several = lm.score("abc"), lm.score(text for text in ["abc", "ab"])
    assert isinstance(alone, float)
    assert several.dtype == np.float64
    assert several[0] == alone
    assert lm.score([]).shape == (0,)


def test_generation_and_stream_give_the_same_text_here_and_at_a_service(
    lm: meari.LanguageModel, local: meari.LanguageModel
) -> None:
    fields = {"max_tokens": 12, "seed": 5, "n": 2, "logprobs": 1, "temperature": 1.5, "stop": ["zz"]}
    found, expected = lm.generate("ab", **fields), local.generate("ab", **fields)  # type: ignore[arg-type]
    assert found.choices == expected.choices
    assert (found.seed, found.model) == (5, "letters")
    with lm.stream("ab", **fields) as stream:  # type: ignore[arg-type]
        pieces = list(stream)
    assert ["".join(piece.text for piece in pieces if piece.index == index) for index in (0, 1)] == found.texts
    assert stream.usage is not None
    assert stream.usage.generated_tokens == found.usage.generated_tokens
    assert str(found) == found.text == found.texts[0]


def test_beam_search_and_bias_reach_the_engine(lm: meari.LanguageModel, local: meari.LanguageModel) -> None:
    fields = {"max_tokens": 4, "num_beams": 3, "n": 2, "seed": 1}
    assert lm.generate("a", **fields).choices == local.generate("a", **fields).choices  # type: ignore[arg-type]
    assert lm.generate("a", max_tokens=1, temperature=0, logit_bias={5: 100.0}).text == lm.detokenize([5])


def test_completions_are_those_of_the_service(lm: meari.LanguageModel, local: meari.LanguageModel, url: str) -> None:
    for text, fields in (("wx", {}), ("ab", {"n": 20, "max_words": 3}), ("", {"n": 1}), ("x y", {"composing": True})):
        found, expected = lm.complete(text, **fields), local.complete(text, **fields)
        body = {"text": text, **fields}
        answer = httpx.post(
            f"{url}/complete", json=body, headers={"Authorization": "Bearer " + "k" * 32}, timeout=PATIENCE
        ).json()
        assert [dataclasses.asdict(each) for each in found] == [{"replaces": None, **e} for e in answer["completions"]]
        assert (found.completions, found.error, found.proven) == (
            expected.completions,
            answer["error"],
            answer["proven"],
        )
        assert (found.model, found.usage.searched_tokens) == ("letters", answer["usage"]["searched_tokens"])
        assert found.usage.prompt_tokens == len(lm.tokenize(text))
        assert 1 <= len(found) <= fields.get("n", 5)
        assert [math.exp(each.logprob) for each in found] == pytest.approx([each.probability for each in found])
    assert str(lm.complete("wx")[0]) == "yz"


def test_completion_of_parts_of_words_and_characters_reaches_the_model(bundles: Path) -> None:
    with meari.load(bundles, model="words") as model:
        assert model.complete("good da", 1)[0].text == "y"
        assert model.complete("zebra").usage.unknown_tokens == 1
    with meari.load(bundles, model="bytes") as model:
        [best] = model.complete("é😀하", 1, composing=True)
        assert (best.text, best.replaces) == ("한", 1)


def test_state_is_a_value_that_goes_on_with_the_same_bits_anywhere(
    lm: meari.LanguageModel, local: meari.LanguageModel
) -> None:
    state = lm.state("abc a")
    for given in (state, str(state), bytes(state), meari.State(bytes(state))):
        for model in (lm, local):
            assert model.score("bca", state=given) == local.score("bca", context="abc a")
    assert local.state("c a", state=local.state("ab")) == local.state("abc a") == state
    fields = {"max_tokens": 6, "seed": 3, "temperature": 1.5}
    expected = local.generate("abc ab", **fields).text  # type: ignore[arg-type]
    assert lm.generate("b", state=state, **fields).text == expected  # type: ignore[arg-type]
    returned = local.generate("ab", max_tokens=2, return_state=True, seed=1).choices[0].state
    assert returned is not None
    assert lm.score("c", state=returned) == local.score("c", state=returned)


def test_state_of_another_key_or_bundle_is_refused_by_name(bundles: Path, local: meari.LanguageModel) -> None:
    with (
        meari.load(bundles) as other,
        pytest.raises(meari.InvalidRequest, match="signed with a key that"),
    ):
        other.score("a", state=local.state("a"))
    with meari.load(bundles, model="words") as other, pytest.raises(meari.InvalidRequest, match="another model"):
        other.score("a", state=local.state("a"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda lm: lm.score(3), "texts: got 3 .int., expected a text, or several"),
        (lambda lm: lm.score(b"ab"), "texts: got b'ab'"),
        (lambda lm: lm.score(pd.DataFrame({"ab": ["a"]})), "texts: got DataFrame, expected .* one column of them"),
        (lambda lm: lm.bits_per_char(np.array([["a"], ["b"]])), "texts: got ndarray"),
        (lambda lm: lm.score(np.array("a")), "texts: got ndarray"),
        (lambda lm: lm.score(["a", None]), r"texts\[1\]: got None"),
        (lambda lm: lm.score("\ud800"), "text: got '.ud800' at character 0"),
        (lambda lm: lm.score("a", log_base=3), "log_base: got 3, expected one of"),
        (lambda lm: lm.score("a", context="b", state=lm.state("c")), "context: got both context and state"),
        (lambda lm: lm.score("a", state="x"), "state: got text that is no state token"),
        (lambda lm: lm.surprisal("a", "line"), "by: got 'line'"),
        (lambda lm: lm.surprisal(["a"]), "text: got"),
        (lambda lm: lm.generate("a", temprature=1), "temprature: got an unknown field.*did you mean temperature"),
        (lambda lm: lm.generate("a", temperature=float("nan")), "temperature: got nan, expected a finite number"),
        (lambda lm: lm.generate("a", top_p=1.5), "top_p: got 1.5"),
        (lambda lm: lm.generate("a", max_tokens=0), "max_tokens: got 0"),
        (lambda lm: lm.generate("a", logit_bias={999999: 1.0}), "logit_bias: got the key '999999'"),
        (lambda lm: lm.generate(None), "prompt: got None"),
        (lambda lm: lm.stream("a", n=17), "n: got 17"),
        (lambda lm: lm.complete("a", n=0), "n: got 0, expected 1 <= n <= 20"),
        (lambda lm: lm.complete("a", n=True), "n: got true"),
        (lambda lm: lm.complete("a", max_words=9), "max_words: got 9"),
        (lambda lm: lm.complete("a", composing="yes"), "composing: got"),
        (lambda lm: lm.complete(None), "text: got None"),
        (
            lambda lm: lm.generate("a", model="b"),
            "model: got 'b' .str., expected no such argument: `meari.load` chooses",
        ),
        (lambda lm: lm.generate("a", stream=True), "stream: got True .bool., expected no such argument"),
        (lambda lm: lm.stream("a", stream=False), "stream: got False"),
        (lambda lm: lm.generate("a", stop="\udc80"), "stop: got '.udc80' at character 0"),
        (lambda lm: lm.generate("a", state=3), "state: got 3 .int., expected a state"),
        (lambda lm: lm.score("a", state="é".encode()), "state: got b'.*expected a state: ASCII characters"),
        (lambda lm: lm.state("a", state=["b"]), "state: got"),
        (lambda lm: lm.detokenize([3, 10**9]), r"tokens\[1\]: got 1000000000, expected a token id, 0 <= id < 28"),
        (lambda lm: lm.detokenize([10**30]), r"tokens\[0\]: got 10{30}, expected a token id, 0 <= id < 28"),
        (lambda lm: lm.detokenize([-1]), r"tokens\[0\]: got -1 .int., expected a token, or its id"),
        (lambda lm: lm.detokenize([1.5]), r"tokens\[0\]: got 1.5"),
        (lambda lm: lm.detokenize([True]), r"tokens\[0\]: got True"),
        (lambda lm: lm.detokenize("12"), "tokens: got '12' .str., expected tokens, or their ids"),
        (lambda lm: lm.detokenize(None), "tokens: got None"),
        (lambda lm: lm.detokenize(np.array(3)), "tokens: got ndarray"),
        (lambda lm: lm.score("a", end="no"), "end: got 'no' .str., expected True, False or None"),
        (lambda lm: lm.surprisal("a", ["token"]), r"by: got \['token'\]"),
        (lambda lm: lm.score("a", state="\ud800"), "state: got '.ud800' .str., expected a state: ASCII characters"),
        (lambda lm: lm.generate("a", logit_bias=3), "logit_bias: got 3, expected an object"),
        (lambda lm: lm.generate("a", logit_bias=[(3, 1.0)]), r"logit_bias\[0\]: got \(3, 1.0\)"),
        (lambda lm: lm.generate("a", logit_bias={3: float("nan")}), "logit_bias.*got nan, expected a finite number"),
        (lambda lm: lm.generate("a", temperature=np.float32("nan")), "temperature: got nan, expected a finite number"),
        (lambda lm: lm.generate("a", temperature=Decimal("0.5")), "temperature: got Decimal"),
        (lambda lm: lm.generate("a", stop=b"zz"), "stop: got b'zz' .bytes."),  # not as the base64 of it
        (lambda lm: lm.generate("a", stop=["zz", b"zz"]), r"stop\[1\]: got b'zz'"),
        (lambda lm: lm.generate("a", stop=["zz", "\udc80"]), r"stop\[1\]: got '.udc80' at character 0"),
        (lambda lm: lm.generate("a", stop=np.array([["a"]])), "stop: got ndarray"),
        (lambda lm: lm.generate("a", top_k=UserString("5")), r"top_k\[0\]: got '5' .UserString."),
        (lambda lm: lm.generate("a", temprature=None), "temprature: got an unknown field"),
    ],
)
def test_wrong_argument_is_named(lm: meari.LanguageModel, ask: Callable[[object], object], message: str) -> None:
    with pytest.raises(meari.InvalidRequest, match=message):
        ask(lm)


def test_long_list_on_several_engines_has_the_bits_of_single_texts(bundles: Path) -> None:
    texts = [("abc "[number % 4] + "bcd" * (number % 7)) for number in range(6000)]
    assert LIST_CHARS < sum(map(len, texts)) < CHUNK_CHARS
    with meari.load(bundles, num_engines=3) as model:
        before = threading.enumerate()
        scores = model.score(texts, context="ab")
        assert len(started_since(before)) == 3  # a list that is long for one has work for all
        assert scores[:50].tolist() == [model.score(text, context="ab") for text in texts[:50]]
    assert len(scores) == len(texts)
    assert np.unique(scores).size > 7


def test_shorter_lists_go_to_the_engines_for_lists_once_there_were_several(bundles: Path) -> None:
    texts = [("abc "[number % 4] + "bcd" * (number % 7)) for number in range(900)]
    num_chars = sum(map(len, texts))
    assert SHORT_LIST_CHARS < num_chars < LIST_CHARS < 2 * num_chars
    with meari.load(bundles, num_engines=3) as model:
        before = threading.enumerate()
        first = model.score(texts)
        assert not started_since(before)  # a list by itself is not worth the time to open an engine
        assert (model.score(texts) == first).all()
        assert started_since(before)
        assert (model.score(texts[:20]) == first[:20]).all()


def started_since(before: list[threading.Thread]) -> set[threading.Thread]:
    """Return the living threads that are new; those of models that were closed may end meanwhile."""
    return set(threading.enumerate()).difference(before)


def test_threads_share_a_model(lm: meari.LanguageModel) -> None:
    expected = [lm.generate("ab", max_tokens=8, seed=seed, temperature=2).text for seed in range(16)]
    scores = lm.score(TEXTS).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: lm.generate("ab", max_tokens=8, seed=seed, temperature=2).text, range(16)))
        many = list(pool.map(lambda _: lm.score(TEXTS).tolist(), range(16)))
    assert found == expected
    assert many == [scores] * 16


def test_stream_that_is_left_frees_its_row(local: meari.LanguageModel) -> None:
    with local.stream("ab", max_tokens=1_000_000, min_tokens=1_000_000) as stream:
        next(stream)
    assert local.generate("ab", max_tokens=2, seed=1).usage.generated_tokens == 2
    assert stream.usage is None


def test_texts_and_numbers_of_numpy_are_taken_like_those_of_python(lm: meari.LanguageModel) -> None:
    assert lm.score(np.array(TEXTS)).tolist() == lm.score(TEXTS).tolist()
    fields = {"max_tokens": np.int64(6), "seed": np.int32(3), "temperature": np.float32(0.5)}
    expected = lm.generate("ab", max_tokens=6, seed=3, temperature=0.5)
    assert lm.generate(np.str_("ab"), **fields).choices == expected.choices  # type: ignore[arg-type]
    assert lm.detokenize(np.array([2, 3])) == lm.detokenize([2, 3]) == "ab"
    assert lm.tokenize(np.str_("ab")) == lm.tokenize("ab")
    assert lm.score("ab", end=np.bool_(True)) == lm.score("ab", end=True)  # type: ignore[call-overload]
    bias = {np.int64(5): np.float32(100)}
    assert lm.generate("a", max_tokens=1, temperature=0, logit_bias=bias).text == lm.detokenize([5])  # type: ignore[arg-type]
    fields = {"max_tokens": 12, "seed": 3, "temperature": 2.0}
    for stop in (np.array(["bc"]), OwnText("bc"), [OwnText("bc")]):
        assert lm.generate("a", stop=stop, **fields) == lm.generate("a", stop="bc", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["here", "service"])
def test_closed_model_says_so_and_ends_its_threads(bundles: Path, place: str, request: pytest.FixtureRequest) -> None:
    source, key = (bundles, "") if place == "here" else (request.getfixturevalue("url"), "k" * 32)
    before = threading.enumerate()
    model = meari.load(source, key=key)
    assert len(model.score(TEXTS)) == len(TEXTS)
    model.close()
    until(lambda: not started_since(before))
    asks: list[Callable[[], object]] = [
        lambda: model.score("a"),
        lambda: model.score(TEXTS),
        lambda: model.generate("a"),
        lambda: model.stream("a"),
        lambda: model.complete("a"),
        lambda: model.state("a"),
        lambda: model.tokenize("a"),
        lambda: model.detokenize([2]),
    ]
    for ask in asks:
        with pytest.raises(NotReady, match="the model letters was closed"):
            ask()
    model.close()


@pytest.mark.parametrize("place", ["here", "service"])
def test_stream_and_list_of_a_model_that_is_closed_meanwhile_say_so(
    bundles: Path, place: str, request: pytest.FixtureRequest
) -> None:
    source, key = (bundles, "") if place == "here" else (request.getfixturevalue("url"), "k" * 32)
    model = meari.load(source, key=key)
    stream = model.stream("ab", max_tokens=4000, min_tokens=4000)
    next(stream)
    model.close()
    with pytest.raises(NotReady, match="the model letters was closed"):
        list(stream)
    assert list(stream) == []


def test_forked_process_goes_on_with_the_models_of_its_parent(lm: meari.LanguageModel) -> None:
    expected = (lm.score(TEXTS).tolist(), lm.generate("ab", max_tokens=6, seed=1).text)

    def in_child() -> object:
        return lm.score(TEXTS).tolist(), lm.generate("ab", max_tokens=6, seed=1).text

    assert result_of_fork(in_child) == expected
    assert lm.score(TEXTS).tolist() == expected[0]


def test_stream_goes_on_in_the_process_that_began_it_alone(lm: meari.LanguageModel) -> None:
    whole = lm.generate("ab", max_tokens=40, seed=1).text
    stream = lm.stream("ab", max_tokens=40, seed=1)
    text = str(next(stream))

    def in_child() -> object:
        with pytest.raises(RuntimeError, match="in the process that began it alone"):
            next(stream)
        stream.close()
        return lm.generate("ab", max_tokens=40, seed=1).text

    assert result_of_fork(in_child) == whole
    assert text + "".join(map(str, stream)) == whole


def test_characters_share_the_surprisal_of_their_token_and_add_up(bundles: Path) -> None:
    with meari.load(bundles, model="words") as model:
        table = model.surprisal("good day", "char", log_base="e", end=True)
        assert [row.text for row in table][:8] == list("good day")
        assert (table[0].start, table[0].end, table[-1].start, table[-1].end) == (0, 1, 8, 8)
        assert len({row.surprisal for row in table[:4]}) <= 2  # equal but for the last step of the grid
        assert table[4].surprisal == 0.0  # a space in no token
        assert sum(row.logprob for row in table) == model.score("good day", end=True)
    with meari.load(bundles, model="bytes") as model:
        table = model.surprisal("é😀한!", "char", log_base="e")
        assert [row.text for row in table][:4] == list("é😀한!")
        assert sum(row.logprob for row in table) == model.score("é😀한!")


def test_table_becomes_a_data_frame_and_html(local: meari.LanguageModel) -> None:
    table = local.surprisal("abc <b>", "token")
    frame = table.to_pandas()
    assert list(frame.columns) == ["text", "start", "end", "surprisal", "logprob", "unknown", "token_id", "rank"]
    assert frame.surprisal.sum() == pytest.approx(table.total)
    assert table.total == pytest.approx(-local.score("abc <b>", log_base=2))
    assert list(local.surprisal("abc ab", "word").to_pandas().columns)[-1] == "unknown"
    polars = pytest.importorskip("polars")
    assert table.to_polars().equals(polars.DataFrame(table.columns()))
    shown = table._repr_html_()
    assert "<b>" not in shown
    assert "prefers-color-scheme:dark" in shown
    assert "unknown to the model" in shown


@pytest.mark.parametrize("by", ["token", "word", "char"])
def test_table_without_rows_has_the_types_of_all_others(local: meari.LanguageModel, by: Any) -> None:
    polars = pytest.importorskip("polars")
    some, none = (local.surprisal(text, by, end=False) for text in ("abc ab", ""))
    assert len(none) == 0
    assert none.to_pandas().dtypes.to_dict() == some.to_pandas().dtypes.to_dict()
    assert none.to_polars().schema == some.to_polars().schema == polars.DataFrame(some.columns()).schema
    assert polars.concat([none.to_polars(), some.to_polars()]).equals(some.to_polars())


@pytest.mark.parametrize("by", ["token", "word"])
def test_rows_as_dictionaries_have_the_names_of_the_columns(local: meari.LanguageModel, by: Any) -> None:
    table = local.surprisal("abc ab", by)
    assert table.to_dicts() == pd.DataFrame(table.columns()).to_dict("records")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": 3}, "source: got 3 .int., expected a name, a path or a URL"),
        ({"source": b"letters"}, "source: got b'letters'"),
        ({"model": 3}, "model: got 3 .int."),
        ({"model": "\ud800"}, "model: got '.ud800' at character 0"),
        ({"key": 3}, "key: got 3"),
        ({"key": "a\nb", "source": "http://127.0.0.1:1"}, "key: got other characters, expected printable ASCII"),
        ({"state_key": b"s" * 40}, "state_key: got b's"),
        ({"num_engines": 1.5}, "num_engines: got 1.5 .float., expected a count, 1 or more"),
        ({"num_engines": "2"}, "num_engines: got '2'"),
        ({"num_engines": 0}, "num_engines: got 0"),
    ],
)
def test_wrong_argument_of_load_is_named(bundles: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(meari.InvalidRequest, match=message):
        meari.load(**{"source": bundles, **arguments})


def test_unknown_bundle_and_service_are_reported(bundles: Path, url: str) -> None:
    with pytest.raises(meari.BundleError, match="model: got 'nix'"):
        meari.load(bundles, model="nix")
    with pytest.raises(meari.UnknownModel, match="nix"):
        meari.load(url, model="nix", key="k" * 32)
    with pytest.raises(meari.MeariError, match="key"):
        meari.load(url)
    with pytest.raises(meari.InvalidRequest, match="key: got a key"):
        meari.load(bundles, key="k")
    with pytest.raises(meari.RemoteError, match="connection refused"):
        meari.load("http://127.0.0.1:1")


def result_of_fork(ask: Callable[[], object]) -> object:
    """Return what a forked process answers; fail if it does not."""
    ours, its = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is what is tested
        child = os.fork()
    if not child:
        try:
            its.send(ask())
        finally:
            os._exit(0)
    its.close()
    try:
        assert ours.poll(PATIENCE), "no answer"
        return ours.recv()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def public_functions() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield name, function and docstring of its class, of all that `meari` offers; properties as their getters."""
    for name in meari.__all__:
        found = getattr(meari, name)
        if inspect.isfunction(found):
            yield name, found, ""
        if not inspect.isclass(found):
            continue
        for attribute, member in vars(found).items():
            function = member.fget if isinstance(member, property) else member
            is_shown = not attribute.startswith("_") or attribute in ("__init__", "__iter__", "__getitem__")
            if is_shown and inspect.isfunction(function) and function.__module__.startswith("meari."):
                yield f"{name}.{attribute}", function, found.__doc__ or ""


def test_docstrings_tell_every_argument_result_and_error() -> None:
    problems = []
    for name, function, of_class in public_functions():
        own = function.__doc__ or ""
        if name.endswith("__") and not own:
            continue  # what Python itself tells
        signature = inspect.signature(function)
        arguments = [each for each in signature.parameters if each != "self"]
        told = own + of_class
        problems += [f"{name}: {each}" for each in arguments if not re.search(rf"\b{each}\b", told)]
        if not own:
            problems.append(f"{name}: no docstring")
        if arguments and str(signature.return_annotation) != "None" and not re.search(r"\b[Rr]eturn", own):
            problems.append(f"{name}: its result")
        if "Floats" in str(signature.return_annotation) and "float64 [" not in own:
            problems.append(f"{name}: the shape of its result")
        if arguments and not re.search(r"\braises?\b|\bValueError\b", told, re.IGNORECASE):
            problems.append(f"{name}: its errors")
    assert problems == []


def test_docstrings_of_values_tell_every_field() -> None:
    for name in meari.__all__:
        found = getattr(meari, name)
        if dataclasses.is_dataclass(found):
            names = [each.name for each in dataclasses.fields(found) if not each.name.startswith("_")]
        elif hasattr(found, "__required_keys__"):
            names = [*found.__annotations__]
        else:
            continue
        told = found.__doc__ or ""
        assert [each for each in names if not re.search(rf"\b{each}\b", told)] == [], name


def test_every_public_name_is_there_and_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    for name in meari.__all__:
        assert getattr(meari, name).__doc__, name
        assert f"`meari.{name}" in page or f"`{name}" in page, name
    assert set(meari.__all__) <= set(dir(meari))


def test_model_is_not_copied_or_pickled_and_what_it_gives_is(lm: meari.LanguageModel) -> None:
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="open it where it is used"):
            make(lm)
    results = (lm.surprisal("abc"), lm.state("ab"), lm.generate("a", max_tokens=3, seed=1), lm.tokenize("ab"))
    for result in results:
        assert pickle.loads(pickle.dumps(result)) == copy.deepcopy(result) == result  # noqa: S301 (made here)
