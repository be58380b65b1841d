"""Test `meari score`: order, figures, bad lines, formats and exit codes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from meari.bulk.output import journal_paths
from meari.service.app import create_app
from meari.service.settings import Settings
from tests.bulk.command import RELEASED, file_records, meari, records, started
from tests.patience import PATIENCE
from tests.runtime.tiny_bundle import rewrite_manifest, write_tiny_bundle

LINES = ["abc", "", "the quick brown fox", 'éé 한국 "x"\t\\', "a" * 300, " lead and trail ", "abd"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(LINES) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def http() -> Any:
    """Return a function that sends POST /score to the released bundles."""
    app = create_app(Settings(bundles=RELEASED, workers=1, log_level="error"))
    registry = app.extensions["meari"].registry
    assert registry.wait_loaded(PATIENCE)
    client: FlaskClient = app.test_client()

    def score(**body: Any) -> list[dict[str, Any]]:
        answer = client.post("/score", json=body)
        assert answer.status_code == 200, answer.text
        results: list[dict[str, Any]] = json.loads(answer.data)["results"]
        return results

    yield score
    registry.stop()


@pytest.mark.parametrize("model", ["shakespeare-lstm", "nsmc-lstm", "shakespeare-esn"])
def test_figures_match_http_bit_for_bit(model: str, text: Path, http: Any) -> None:
    options: dict[str, Any] = {"log_base": "2", "tokens": True, "words": True, "top": 2, "context": "Now "}
    expected = http(model=model, texts=LINES, **options)
    words = ["--log-base", "2", "--tokens", "--words", "--top", 2, "--context", "Now "]
    done = meari("score", text, "--model", model, "--bundles", RELEASED, *words, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    found = records(done.stdout)
    assert [(record.pop("line"), record.pop("text")) for record in found] == list(enumerate(LINES, 1))
    assert found == expected


def test_line_has_its_own_context_and_keeps_its_fields(bundles: Path) -> None:
    lines = [
        {"id": "x", "text": "cd", "context": "ab", "note": [1, {"a": None}]},
        {"text": "cd", "tokens": "of another model"},
        {"text": "cd", "context": "", "id": 7},
    ]
    stdin = "\n".join(map(json.dumps, lines))
    done = meari("score", "-", "--bundles", bundles, "--context", "ab", stdin=stdin)
    found = records(done.stdout)
    assert found[0]["logprob"] == found[1]["logprob"] != found[2]["logprob"]
    assert [record.get("id") for record in found] == ["x", None, 7]
    assert found[0]["note"] == [1, {"a": None}]
    assert list(found[0])[:5] == ["line", "id", "text", "context", "note"]


def test_output_does_not_depend_on_the_number_of_processes(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"{'abcdefgh'[: i % 9]} {i}\n" for i in range(3000)))
    first, *others = (
        meari("score", path, "--bundles", bundles, "--jobs", jobs, "--words").stdout for jobs in (1, 2, 5)
    )
    assert others == [first, first]
    assert [record["line"] for record in records(first)] == list(range(1, 3001))


def test_bad_line_ends_the_run_after_all_earlier_lines(bundles: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "a"}\n' * 1999 + '{"text": 5}\n' + '{"text": "b"}\n' * 2000)
    done = meari("score", path, "--bundles", bundles, "-o", output)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"meari: {path}: line 2000: text: got 5, expected a string; "
        "--skip-bad writes an error record in its place and goes on\n"
    )
    assert [record["line"] for record in file_records(output)] == list(range(1, 2000))
    again = meari("score", path, "--bundles", bundles, "-o", output, "--resume", "--skip-bad")
    assert again.returncode == 0, again.stderr
    found = file_records(output)
    assert [record["line"] for record in found] == list(range(1, 4001))
    assert found[1999] == {"line": 2000, "error": "text: got 5, expected a string"}
    assert b"1 bad line" in again.stderr


def test_skipped_lines_keep_their_position_and_number(bundles: Path) -> None:
    stdin = b'{"text":"a"}\n\nnot json\n{"text":"b\xff"}\n{"text":"c"}'
    done = meari("score", "-", "--bundles", bundles, "--skip-bad", stdin=stdin)
    assert done.returncode == 0
    assert [("error" in record, record["line"]) for record in records(done.stdout)] == [
        (False, 1), (True, 2), (True, 3), (True, 4), (False, 5),
    ]  # fmt: skip


def test_run_ended_by_bad_lines_resumes_with_a_higher_limit(bundles: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "a"}\n5\n' * 1500)
    done = meari("score", path, "--bundles", bundles, "-o", output, "--skip-bad")
    assert done.returncode == 1
    message = done.stderr.decode()
    assert f"{path}: line 2002: got 5, expected a JSON object" in message
    assert (
        "that is one bad line more than the 1,000 of --max-bad; the records of all lines before are written" in message
    )
    assert [record["line"] for record in file_records(output)] == list(range(1, 2002))
    assert meari("score", path, "--bundles", bundles, "-o", output, "--skip-bad", "--resume").stderr == done.stderr
    summary = tmp_path / "summary.json"
    words = ["--max-bad", 1500, "--resume", "--summary", summary]
    again = meari("score", path, "--bundles", bundles, "-o", output, *words)
    assert again.returncode == 0, again.stderr
    assert [record["line"] for record in file_records(output)] == list(range(1, 3001))
    found = json.loads(summary.read_text())
    assert (found["num_texts"], found["num_bad_lines"], found["max_bad_lines"]) == (1500, 1500, 1500)


@pytest.mark.parametrize("limit", [0, 1, 2])
@pytest.mark.parametrize("verb", [["score"], ["generate", "--seed", 1, "--max-tokens", 2, "--prompts"]])
def test_run_stops_at_the_first_bad_line_over_the_limit(bundles: Path, verb: list[object], limit: int) -> None:
    stdin = b"a\n\xff\nb\n\xff\nc\n\xff\nd\n"
    done = meari(*verb, "-", "--bundles", bundles, "--max-bad", limit, stdin=stdin)
    assert done.returncode == 1
    assert f"standard input: line {2 * limit + 2}: got bytes that are not UTF-8" in done.stderr.decode()
    found = [("error" in record, record["line"]) for record in records(done.stdout)]
    assert found == [(line % 2 == 0, line) for line in range(1, 2 * limit + 2)]
    assert meari(*verb, "-", "--bundles", bundles, "--max-bad", 3, stdin=stdin).returncode == 0


def test_lines_of_any_length_count_as_bad_lines(bundles: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "bad.txt", tmp_path / "out.jsonl"
    path.write_bytes(b"a\n" + b"b " * 200_000 + b"\xff\n" + b"c\n" * 9 + b"\xff\nd\n")
    done = meari("score", path, "--bundles", bundles, "-o", output, "--max-bad", 1)
    assert (done.returncode, b"line 12: got bytes" in done.stderr) == (1, True)
    assert [record["line"] for record in file_records(output)] == list(range(1, 12))


@pytest.mark.parametrize("verb", [["score"], ["generate", "--prompts"]])
def test_input_without_valid_lines_fails(bundles: Path, verb: list[str]) -> None:
    done = meari(*verb, "-", "--bundles", bundles, "--skip-bad", stdin=b"\xff\n\xff\n")
    assert done.returncode == 1
    assert [record["line"] for record in records(done.stdout)] == [1, 2]
    assert b"got 2 bad lines and no good one" in done.stderr


@pytest.mark.parametrize("text", ["a\u2028b\u2029c\x85d"])
def test_jsonl_has_no_line_separators_inside_records(bundles: Path, text: str) -> None:
    line = json.dumps({"text": text, "prompt": text, text: text}, ensure_ascii=False) + "\n"
    for words in (["score", "-", "--tokens", "--words"], ["generate", "--prompts", "-", "--max-tokens", "2"]):
        done = meari(*words, "--bundles", bundles, stdin=line * 2)
        assert done.returncode == 0, done.stderr
        first, second = map(json.loads, done.stdout.decode().splitlines())
        assert first["text"] == first[text] == second["text"] == text


def test_tokens_that_are_parts_of_characters_have_bytes(bundles: Path) -> None:
    words = ["score", "--bundles", bundles, "--model", "bytes", "--tokens", "--top", 2, "--no-end"]
    done = meari(*words, "-", stdin="é한\n")
    [record] = records(done.stdout)
    assert bytes(byte for token in record["tokens"] for byte in token["bytes"]) == "é한".encode()
    assert record["tokens"][0]["top"][0]["bytes"] == record["tokens"][0]["bytes"] == [0xC3]
    table = meari("score", "--bundles", bundles, "--model", "bytes", "--tokens", "--text", "é").stdout.decode()
    assert re.findall(r'"(.+?)"  ', table.partition("tokens of")[2])[-2:] == [r"\xc3", r"\xa9"]


def test_summary_weights_texts_by_their_tokens(bundles: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    done = meari("score", "-", "--bundles", bundles, "--summary", summary, "--log-base", "2", stdin="abc\n\nx?é\nab")
    found = json.loads(summary.read_text())
    each = [record for record in records(done.stdout) if record["text"]]
    counts = ("num_tokens", "num_unknown", "num_chars", "num_bytes", "logprob", "logprob_without_unknown")
    for name in counts:
        assert found[name] == pytest.approx(sum(record[name] for record in each), rel=1e-12)
    shown = ("num_texts", "num_blank", "num_bad_lines", "num_unknown")
    assert [found[name] for name in shown] == [3, 1, 0, 2]
    nats, known = (found[name] * math.log(2) for name in ("logprob", "logprob_without_unknown"))
    assert found["perplexity"] == pytest.approx(math.exp(-nats / found["num_tokens"]))
    assert found["perplexity_without_unknown"] == pytest.approx(math.exp(-known / (found["num_tokens"] - 2)))
    assert found["bits_per_char"] == pytest.approx(-found["logprob"] / found["num_chars"])
    assert found["bits_per_byte"] == pytest.approx(-found["logprob"] / found["num_bytes"])
    assert b"3 texts (1 blank, not counted)" in done.stderr
    assert meari("score", "-", "--bundles", bundles, "--quiet", stdin="a").stderr == b""


def test_empty_input_gives_no_records_and_no_perplexity(bundles: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    done = meari("score", "-", "--bundles", bundles, "--summary", summary)
    assert (done.returncode, done.stdout) == (0, b"")
    found = json.loads(summary.read_text())
    assert (found["num_texts"], found["perplexity"], found["bits_per_char"]) == (0, None, None)


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode()), dialect="excel-tab"))


def test_tsv_has_one_row_for_each_text(bundles: Path, text: Path) -> None:
    found = rows(meari("score", text, "--bundles", bundles, "--format", "tsv").stdout)
    expected = records(meari("score", text, "--bundles", bundles).stdout)
    assert [row["line"] for row in found] == [str(n) for n in range(1, len(LINES) + 1)]
    assert [float(row["logprob"]) for row in found] == [record["logprob"] for record in expected]
    assert found[1]["bits_per_char"] == ""
    assert found[3]["text"] == 'éé 한국 "x"\\t\\\\'


@pytest.mark.parametrize(("option", "name"), [("--tokens", "token"), ("--words", "word")])
def test_tsv_has_one_row_for_each_token_or_word_with_the_text_number(
    bundles: Path, text: Path, option: str, name: str
) -> None:
    found = rows(meari("score", text, "--bundles", bundles, "--format", "tsv", option).stdout)
    expected = [
        (str(record["line"]), str(number), part["text"], part["logprob"])
        for record in records(meari("score", text, "--bundles", bundles, option).stdout)
        for number, part in enumerate(record[option[2:]], 1)
    ]
    assert [
        (
            row["line"],
            row[f"{name}_number"],
            row[name].replace("\\\\", "\\").replace("\\t", "\t"),
            float(row["logprob"]),
        )
        for row in found
    ] == expected
    assert all(float(row["surprisal"]) == 0 - float(row["logprob"]) for row in found)


def test_tsv_columns_are_the_fields_of_the_first_line_without_loss(bundles: Path) -> None:
    stdin = '{"id":"1","text":"a","who":{"x":1}}\n{"text":"b","new":2}\n{"id":null,"text":5}\n'
    done = meari("score", "-", "--bundles", bundles, "--format", "tsv", "--skip-bad", stdin=stdin)
    found = rows(done.stdout)
    assert [(row["id"], row["who"], row["more"], row["text"], row["error"]) for row in found] == [
        ("1", '{"x":1}', "", "a", ""),
        ("", "", '{"new":2}', "b", ""),
        ("", "", "", "", "text: got 5, expected a string"),
    ]


@pytest.mark.parametrize(("corpus", "has_ends"), [({"has_ends": False}, False), ({"document": "line"}, True)])
def test_default_of_add_end_comes_from_the_bundle_and_is_kept_in_the_journal(
    tmp_path: Path, corpus: dict[str, object], has_ends: bool
) -> None:
    bundle = write_tiny_bundle(tmp_path / "letters")
    rewrite_manifest(bundle, corpus=corpus)
    text, output = tmp_path / "text.txt", tmp_path / "out.jsonl"
    text.write_text("ab\n")
    found = {}
    for words in ([], ["--end"], ["--no-end"]):
        done = meari("score", text, "--bundles", bundle, "-o", output, "--overwrite", *words)
        assert done.returncode == 0, done.stderr
        head = json.loads(journal_paths(output)[0].read_text().splitlines()[0])
        [record] = file_records(output)
        assert record["num_tokens"] == 2 + head["add_end"]
        found["".join(map(str, words))] = head["add_end"]
    assert found == {"": has_ends, "--end": True, "--no-end": False}
    # An option with its default value does not make another run.
    same, other = (["--end"], ["--no-end"]) if has_ends else (["--no-end"], ["--end"])
    meari("score", text, "--bundles", bundle, "-o", output, "--overwrite")
    assert meari("score", text, "--bundles", bundle, "-o", output, "--resume", *same).returncode == 0
    refused = meari("score", text, "--bundles", bundle, "-o", output, "--resume", *other)
    assert refused.returncode == 1
    assert b"add_end" in refused.stderr


def test_options_leave_out_the_end_and_the_text(bundles: Path) -> None:
    [record] = records(meari("score", "-", "--bundles", bundles, "--no-end", "--no-text", stdin="ab\n").stdout)
    assert record["num_tokens"] == 2
    assert "text" not in record


def test_closed_pipe_ends_the_run_silently(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("abc\n" * 50_000)
    with started("score", path, "--bundles", bundles) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"line":1,')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0


def test_results_are_written_while_the_input_is_open(bundles: Path) -> None:
    with started("score", "-", "--bundles", bundles) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"first", b"second"):
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == line.decode()
        out, _ = process.communicate(b"third", timeout=PATIENCE)
        assert json.loads(out)["line"] == 3


def test_bundle_is_given_by_name_or_path(bundles: Path) -> None:
    outputs = [
        meari("score", "-", *words, stdin="ab").stdout
        for words in (
            ["--bundles", bundles],
            ["--bundles", bundles, "--model", "letters"],
            ["--bundles", bundles / "letters"],
            ["--model", bundles / "letters"],
        )
    ]
    assert outputs[0] != b""
    assert len(set(outputs)) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([""], 1, "meari: '': No such file or directory, expected a readable file"),
        (["nowhere.txt"], 1, "nowhere.txt: No such file or directory, expected a readable file"),
        (
            ["-", "--model", "nothing"],
            1,
            "model: got 'nothing', expected bytes, letters, words, or the path of a bundle",
        ),
        (["-", "--top", "3"], 2, "--top: got 3 without --tokens"),
        (["-", "--tokens", "--words", "--format", "tsv"], 2, "expected one: a row is a token or a word"),
        (["-", "--resume"], 2, "--resume needs -o FILE"),
        (["-", "--log-base", "7"], 2, "log-base"),
        (["-", "--summary", "/nowhere/summary.json"], 2, "--summary: got /nowhere/summary.json"),
        (["-", "--jobs", "0"], 2, "jobs"),
        ([], 2, "FILE"),
    ],
)
def test_errors_are_one_line(bundles: Path, words: list[str], code: int, message: str) -> None:
    done = meari("score", "--bundles", bundles, *words)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("verb", [["score"], ["generate", "--seed", 1, "--max-tokens", 2, "--prompts"]])
def test_unwritable_summary_loses_no_records(bundles: Path, tmp_path: Path, verb: list[object]) -> None:
    output = tmp_path / "out.jsonl"
    done = meari(*verb, "-", "--bundles", bundles, "-o", output, "--summary", "/dev/full", stdin="ab\ncd\n")
    assert done.returncode == 1
    assert b"meari: /dev/full: No space left on device, expected a file to write the summary to" in done.stderr
    assert b"Traceback" not in done.stderr
    assert [record["line"] for record in file_records(output)] == [1, 2]
    again = meari(*verb, "-", "--bundles", bundles, "-o", output, "--summary", tmp_path / "s.json", stdin="ab\ncd\n")
    assert again.returncode == 0
    assert json.loads((tmp_path / "s.json").read_text())["num_bad_lines"] == 0


def test_broken_bundle_does_not_change_an_existing_output(bundles: Path, tmp_path: Path) -> None:
    broken, output = tmp_path / "broken", tmp_path / "out.jsonl"
    broken.mkdir()
    (broken / "manifest.json").write_bytes((bundles / "letters" / "manifest.json").read_bytes())
    output.write_text("precious\n")
    done = meari("score", "-", "--model", broken, "-o", output, stdin="a\n")
    assert done.returncode == 1
    assert b"cannot be read" in done.stderr
    assert output.read_text() == "precious\n"
