"""Test inputs: compressed files, several files, folders, other encodings, and fields of JSONL."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from meari.bulk import lines
from meari.bulk.lines import Unpacker
from meari.bulk.source import Source
from tests.bulk.command import file_records, meari, records, started
from tests.patience import PATIENCE

TEXT = "ab\n\ncd e\n"


def lines_of(*names: Path) -> list[tuple[int, bytes]]:
    """Return file number and bytes of every chunk."""
    source, found = Source([str(name) for name in names], tells_files=True), []
    while not source.is_done and source.failure is None:
        if source.wants_more:
            source.read()
        while (chunk := source.take(1, 1, partial=True)) is not None:
            found.append((chunk.file, chunk.data))
    return found


@pytest.mark.parametrize("verb", [["score"], ["generate", "--seed", 1, "--max-tokens", 3, "--prompts"]])
@pytest.mark.parametrize("name", ["x.gz", "X.GZ", "x.txt.gz", "x", "x.txt"])
def test_gzip_is_read_under_any_name_and_from_a_pipe(bundles: Path, tmp_path: Path, verb: list[str], name: str) -> None:
    plain, packed = tmp_path / "plain.txt", tmp_path / name
    plain.write_text(TEXT)
    packed.write_bytes(gzip.compress(b"ab\n\nc") + gzip.compress(b"d e\n") + b"\0" * 7)
    expected = meari(*verb, plain, "--bundles", bundles)
    assert expected.returncode == 0, expected.stderr
    assert meari(*verb, packed, "--bundles", bundles).stdout == expected.stdout
    piped = meari(*verb, "-", "--bundles", bundles, stdin=packed.read_bytes())
    assert piped.stdout == expected.stdout


def test_compressed_jsonl_is_recognised_by_its_ending_in_any_case(bundles: Path, tmp_path: Path) -> None:
    for name in ("x.jsonl.gz", "X.NDJSON", "x.JSONL"):
        data = b'\n{"text":"ab"}\n'
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        done = meari("score", tmp_path / name, "--bundles", bundles, "--skip-bad")
        assert [record["line"] for record in records(done.stdout)] == [1, 2]
        assert "error" in records(done.stdout)[0]
    for name in ("B.TXT", "b.text"):
        (tmp_path / name).write_text('{"text":"ab"}\n')
        [record] = records(meari("score", tmp_path / name, "--bundles", bundles).stdout)
        assert record["text"] == '{"text":"ab"}'


def test_truncated_file_is_read_up_to_the_damage(bundles: Path, tmp_path: Path) -> None:
    text = "".join(f"line {number} {number * 7919 % 1000}\n" for number in range(5000))
    path, output = tmp_path / "cut.gz", tmp_path / "out.jsonl"
    packed = gzip.compress(text.encode())
    path.write_bytes(packed[: len(packed) // 2])
    done = meari("score", path, "--bundles", bundles, "-o", output, "--no-text")
    assert done.returncode == 1
    assert f"{path}: got a damaged .gz (it ends too early)" in done.stderr.decode()
    num_whole = Unpacker(str(path)).unpack(path.read_bytes()).count(b"\n")
    assert [record["line"] for record in file_records(output)] == list(range(1, num_whole + 1))
    path.write_bytes(packed)
    assert b"other input" in meari("score", path, "--bundles", bundles, "-o", output, "--no-text", "--resume").stderr


def test_truncated_long_line_is_not_a_line(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    text = "".join(f"{number * 7919 % 100_003} " for number in range(150_000))
    packed = gzip.compress(f"ab\n{text}".encode())
    path.write_bytes(packed[:-100])
    done = meari("score", path, "--bundles", bundles, "--no-text")
    assert done.returncode == 1
    assert [record["line"] for record in records(done.stdout)] == [1]
    assert b"it ends too early" in done.stderr


@pytest.mark.parametrize(
    ("data", "kind", "command"),
    [
        (lzma.compress(b"ab\n"), "xz", "xz -dc"),
        (bz2.compress(b"ab\n"), "bzip2", "bzip2 -dc"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "Zstandard", "zstd -dc"),
        ("ab\ncd\n".encode("utf-16"), "UTF-16", "iconv -f UTF-16 -t UTF-8"),
        ("ab\ncd\n".encode("utf-16-le"), "UTF-16LE", "iconv -f UTF-16LE -t UTF-8"),
        ("ab\ncd\n".encode("utf-16-be"), "UTF-16BE", "iconv -f UTF-16BE -t UTF-8"),
        ("ab\ncd\n".encode("utf-32"), "UTF-32", "iconv -f UTF-32 -t UTF-8"),
        ("ab\ncd\n".encode("utf-32-be"), "UTF-32BE", "iconv -f UTF-32BE -t UTF-8"),
        ("한국어 글\n".encode("utf-16"), "UTF-16", "iconv -f UTF-16 -t UTF-8"),
        ("재미있는영화였습니다정말추천".encode("utf-16-le"), "UTF-16LE", "iconv -f UTF-16LE -t UTF-8"),
        (b"PK\3\4\n", "a ZIP archive", "unzip -p"),
    ],
)
def test_unsupported_files_are_refused_with_a_command_that_converts_them(
    bundles: Path, tmp_path: Path, data: bytes, kind: str, command: str
) -> None:
    path, output = tmp_path / "it's.txt", tmp_path / "out.jsonl"
    path.write_bytes(data)
    output.write_text("precious")
    quoted = "'" + str(path).replace("'", "'\"'\"'") + "'"
    for words, hint in (([path], f"`{command} {quoted}`"), (["-"], f"`{command}`")):
        done = meari("score", *words, "--bundles", bundles, "--skip-bad", "-o", output, stdin=data)
        assert done.returncode == 1
        assert f"got {kind}, expected UTF-8, plain or gzip; {hint} converts it" in done.stderr.decode()
        assert output.read_text() == "precious"


@pytest.mark.parametrize("verb", ["score", "generate"])
def test_text_in_a_legacy_encoding_is_refused_with_the_command_that_converts_it(
    bundles: Path, tmp_path: Path, verb: str
) -> None:
    data = "이 영화는 정말 재미있습니다\n".encode("cp949")
    for name, content in (("x.txt", data), ("x.gz", gzip.compress(data)), ("y.txt", b"first\n" + data), ("-", data)):
        path = name if name == "-" else str(tmp_path / name)
        if name != "-":
            Path(path).write_bytes(content)
        words = [path, "--bundles", bundles] if verb == "score" else ["--prompts", path, "--bundles", bundles]
        done = meari(verb, *words, stdin=data)
        assert done.returncode == 1
        command = "iconv -f CP949 -t UTF-8"
        if name != "-":
            command = f"gzip -dc {path} | {command}" if name == "x.gz" else f"{command} {path}"
        assert f"expected UTF-8; it looks like CP949 (EUC-KR): `{command}` converts it; " in done.stderr.decode()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_content_of_compressed_files_is_checked(bundles: Path, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress("ab\ncd\nef\n".encode(encoding)))
    done = meari("score", path, "--bundles", bundles, "--skip-bad")
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"`gzip -dc {path} | iconv -f UTF-" in done.stderr.decode()


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.gz"])
def test_tar_archives_are_refused(bundles: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "inner.txt").write_text("one\ntwo\n")
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.add(tmp_path / "inner.txt", "inner.txt")
    done = meari("score", tmp_path / name, "--bundles", bundles, "--skip-bad")
    assert (done.returncode, done.stdout) == (1, b"")
    hint = f"`gzip -dc {tmp_path / name} | tar -xOf -` converts it"
    assert f"got a tar archive, expected UTF-8, plain or gzip; {hint}" in done.stderr.decode()
    converted = subprocess.run(["sh", "-c", hint.split("`")[1]], capture_output=True, check=True)
    assert converted.stdout == b"one\ntwo\n"


@pytest.mark.parametrize("text", ["a\0b\nplain text\n", "BZhou Enlai\n", "PK\n", "\ufeffab\n", "é\n", "\x1f\n", ""])
def test_text_with_unusual_first_bytes_is_accepted(text: str) -> None:
    lines.refuse_other_kinds("x", text.encode())
    assert Unpacker.of("x", text.encode()) is None


def test_plain_text_with_a_gz_ending_is_refused(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_text("plain\n")
    done = meari("score", tmp_path / "x.gz", "--bundles", bundles)
    assert (done.returncode, b"got a .gz that is not gzip" in done.stderr) == (1, True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with a compressed and a plain text file; the last line of the first file has no line end."""
    folder = tmp_path / "texts"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.txt").write_text("\ufeffab\ncd", "utf-8")
    (folder / "deeper" / "b.txt.gz").write_bytes(gzip.compress(b"ef\n\ngh\n"))
    (folder / "notes.md").write_text("not a text")
    return folder


@pytest.mark.parametrize("output_format", ["jsonl", "tsv"])
def test_records_of_several_files_name_their_file(bundles: Path, folder: Path, output_format: str) -> None:
    done = meari("score", folder, folder / "a.txt", "--bundles", bundles, "--format", output_format)
    assert done.returncode == 0, done.stderr
    rows = (
        [{**record, "line": str(record["line"])} for record in records(done.stdout)]
        if output_format == "jsonl"
        else list(csv.DictReader(io.StringIO(done.stdout.decode()), dialect="excel-tab"))
    )
    first, second = str(folder / "a.txt"), str(folder / "deeper" / "b.txt.gz")
    assert [(row["file"], row["line"], row["text"]) for row in rows] == [
        *[(first, "1", "ab"), (first, "2", "cd")],
        *[(second, "1", "ef"), (second, "2", ""), (second, "3", "gh")],
        *[(first, "1", "ab"), (first, "2", "cd")],
    ]
    assert b"6 texts (1 blank, not counted)" in done.stderr


def test_bad_lines_of_several_files_name_their_file(bundles: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"ab\n\xff\n")
    names = [tmp_path / "a.txt", tmp_path / "b.txt"]
    done = meari("score", *names, "--bundles", bundles)
    assert f"{names[0]}: line 2: got bytes that are not UTF-8" in done.stderr.decode()
    done = meari("score", *names, "--bundles", bundles, "--skip-bad")
    bad = [(record["file"], record["line"]) for record in records(done.stdout) if "error" in record]
    assert bad == [(str(name), 2) for name in names]


def test_interrupted_run_resumes_in_the_right_file(bundles: Path, tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.txt")]
    texts = ["".join(f"{'abcdefgh'[: i % 9]} {i} {name}\n" for i in range(4000)) for name in "abc"]
    for name, text in zip(names, texts, strict=True):
        name.write_bytes(gzip.compress(text.encode()) if name.suffix == ".gz" else text.encode())
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert meari("score", *names, "--bundles", bundles, "-o", whole, "--words").returncode == 0
    words = ["score", *names, "--bundles", bundles, "-o", output, "--words", "--jobs", 1]
    interrupted = 0
    for _ in range(3):
        with started(*words, *(["--resume"] if output.exists() else [])) as process:
            assert process.stderr is not None
            size = output.stat().st_size if output.exists() else 0
            while process.poll() is None and (not output.exists() or output.stat().st_size < size + 300_000):
                pass
            process.send_signal(signal.SIGINT)
            interrupted += process.wait(PATIENCE) == 130
    assert interrupted > 0
    assert meari(*words, "--resume").returncode == 0
    assert output.read_bytes() == whole.read_bytes()
    assert lines_of(*names)[4001] == (1, b"abc... 1 b\n".replace(b"abc...", b"a"))


def test_run_is_not_resumed_on_other_files(bundles: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert meari("score", folder, "--bundles", bundles, "-o", output).returncode == 0
    (folder / "c.txt").write_text("new\n")
    done = meari("score", folder, "--bundles", bundles, "-o", output, "--resume")
    assert (done.returncode, b"other input" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-", "a.txt"], 2, "-: got standard input beside files"),
        (["a.txt", "b.jsonl"], 2, "expected files of one kind"),
        (["a.txt", "/dev/null"], 1, "/dev/null: got a pipe or device beside other inputs"),
        (["a.txt", "none.txt"], 1, "none.txt: No such file"),
        (["a.txt", "--field", "x", "--input-format", "text"], 2, "--field: got 'x' with --input-format text"),
        (["a.txt", "-o", "."], 2, "--output: got ., a folder, expected a file"),
    ],
)
def test_incompatible_inputs_are_refused(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    (tmp_path / "a.txt").write_text("ab\n")
    (tmp_path / "b.jsonl").write_text('{"text":"ab"}\n')
    names = [tmp_path / word if word in ("a.txt", "b.jsonl", "none.txt") else word for word in words]
    done = meari("score", *names, "--bundles", bundles)
    assert done.returncode == code
    assert message in done.stderr.decode()


def test_field_option_selects_the_text(bundles: Path) -> None:
    stdin = '{"review":"ab","text":"cd","context":"x"}\n'
    [plain] = records(meari("score", "-", "--bundles", bundles, stdin='{"text":"ab","context":"x"}\n').stdout)
    [found] = records(meari("score", "-", "--bundles", bundles, "--field", "review", stdin=stdin).stdout)
    assert (found["logprob"], found["text"], found["review"]) == (plain["logprob"], "cd", "ab")
    [alone] = records(meari("score", "-", "--bundles", bundles, "--field", "context", "--no-text", stdin=stdin).stdout)
    assert "context" not in alone
    [continued] = records(
        meari("generate", "--prompts", "-", "--bundles", bundles, "--field", "review", "--seed", 1, stdin=stdin).stdout
    )
    assert (continued["review"], continued["text"]) == ("ab", "cd")
    missing = meari("score", "-", "--bundles", bundles, "--field", "other", stdin=stdin)
    assert b"other: missing, expected a string" in missing.stderr


VERBS = {
    "score": (["score", "-", "--words"], "logprob"),
    "score tsv": (["score", "-", "--words", "--format", "tsv"], "surprisal"),
    "generate": (["generate", "--prompts", "-", "--seed", "1"], "seed"),
    "generate tsv": (["generate", "--prompts", "-", "--seed", "1", "--format", "tsv"], "logprob"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_existing_fields_are_never_replaced_and_a_prefix_keeps_both(bundles: Path, verb: str) -> None:
    words, name = VERBS[verb]
    line = json.dumps({"text" if "score" in verb else "prompt": "ab", name: "kept"}) + "\n"
    done = meari(*words, "--bundles", bundles, stdin=line)
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"{name}: got what the output has as well" in done.stderr.decode()
    assert "--prefix NAME_" in done.stderr.decode()
    other = line.replace(name, "other")
    later = meari(*words, "--bundles", bundles, stdin=other + line)
    assert (later.returncode, f"line 2: {name}: got what" in later.stderr.decode()) == (1, True)
    done = meari(*words, "--bundles", bundles, "--prefix", "m_", stdin=line)
    plain = meari(*words, "--bundles", bundles, stdin=other)
    assert done.returncode == 0, done.stderr
    if "tsv" in verb:
        [found, expected] = [
            next(csv.DictReader(io.StringIO(x.stdout.decode()), dialect="excel-tab")) for x in (done, plain)
        ]
    else:
        [found, expected] = [records(x.stdout)[0] for x in (done, plain)]
    assert found[name] == "kept"
    assert f"m_{name}" in found
    assert {key.removeprefix("m_"): value for key, value in found.items() if key != name} == {
        key: value for key, value in expected.items() if key != "other"
    }
