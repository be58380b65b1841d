"""Test the reading of documents: units, line ends, compressed files, and errors with file and line."""

import bz2
import gzip
import lzma
import os
import socket
import tarfile
from pathlib import Path

import pytest

from meari.bundle_format.names import Document as Unit
from meari.models.errors import BrokenText, UnreadableFile
from meari.models.text import corpus
from meari.models.text.corpus import BadLines, read_documents, read_pieces
from meari.models.text.text_files import list_files


def texts(path: Path, unit: Unit) -> list[str]:
    return [document.text for document in read_documents([path], unit)]


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_every_line_that_is_not_blank_is_a_document(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "\ufeff 하나 \r\n\r\n \t\ntwo\nthree".encode())
    found = list(read_documents([path], Unit.LINE))
    assert [(document.text, document.line) for document in found] == [(" 하나 ", 1), ("two", 4), ("three", 5)]
    assert {document.source for document in found} == {str(path)}


def test_paragraph_is_a_series_of_lines_that_are_not_blank(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"\n\na\r\n b\n\n \nc\n")
    found = list(read_documents([path], Unit.PARAGRAPH))
    assert [(document.text, document.line) for document in found] == [("a\n b", 3), ("c", 7)]


def test_file_is_one_unchanged_document(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"\xef\xbb\xbf\n\na\r\n\rb\n")
    assert texts(path, Unit.FILE) == ["\n\na\n\rb\n"]
    assert texts(written(tmp_path / "b.txt", b" \n\n"), Unit.FILE) == []


def test_folder_lists_its_text_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.gz", "sub/c.TXT", "d.Text", "notes.md", "._b.txt", ".cache/e.txt"):
        written(tmp_path / name, name.encode())
    names = [path.relative_to(tmp_path).as_posix() for path in list_files([tmp_path])]
    assert names == ["a.gz", "b.txt", "d.Text", "sub/c.TXT"]
    assert list_files([tmp_path / "notes.md"]) == [tmp_path / "notes.md"]


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere" / "a.txt", b"text")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to("../elsewhere")
    (tmp_path / "corpus" / "twice").symlink_to("../elsewhere")
    (tmp_path / "corpus" / "loop").symlink_to(".")
    assert list_files([tmp_path / "corpus"]) == [tmp_path / "corpus" / "link" / "a.txt"]


def test_pipes_and_sockets_in_a_folder_are_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s.txt"))
        with pytest.raises(UnreadableFile, match="folder without"):
            list_files([tmp_path])
        with pytest.raises(UnreadableFile, match=r"s\.txt: got a socket, expected"):
            list_files([tmp_path / "s.txt"])
        written(tmp_path / "a.txt", b"text")
        assert list_files([tmp_path]) == [tmp_path / "a.txt"]
    with pytest.raises(UnreadableFile, match="zero: got a device, expected"):
        list_files(["/dev/zero"])


def test_link_to_nothing_is_called_so_without_a_hint_at_itself(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(UnreadableFile, match=r"loop\.txt: got a link to nothing, expected a readable file or folder$"):
        list_files([tmp_path / "loop.txt"])


@pytest.mark.parametrize("name", ["a.GZ", "a.txt", "a"])
def test_gzip_is_recognised_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"one\ntwo\n"))
    assert texts(tmp_path / name, Unit.LINE) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        (".xz", lzma.compress(b"text"), "xz -dc"),
        (".zst", b"\x28\xb5\x2f\xfd\x04", "zstd -dc"),
        (".bz2", bz2.compress(b"text"), "bzip2 -dc"),
        (".zip", b"PK\3\4", "unzip -p"),
    ],
)
def test_other_compression_is_refused_with_a_command_that_converts_it(
    tmp_path: Path, name: str, content: bytes, command: str
) -> None:
    alone, named = written(tmp_path / "a.txt", content), written(tmp_path / "folder" / f"b.txt{name}", content)
    for paths, file in (([alone], alone), ([named], named), ([named.parent], named)):
        with pytest.raises(UnreadableFile, match="expected UTF-8, plain or gzip") as caught:
            list(read_documents(paths, Unit.LINE))
        assert f"`{command} {file}` converts it" in str(caught.value)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.gz", "a.TGZ", "a.txt"])
def test_tar_archives_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    written(tmp_path / "inner", b"one\ntwo\n")
    with tarfile.open(path, "w:" if name == "a.txt" else "w:gz") as archive:
        archive.add(tmp_path / "inner", "inner")
    with pytest.raises(UnreadableFile, match="got a tar archive, expected UTF-8"):
        list(read_documents([path], Unit.LINE))


def test_lines_that_are_not_utf8_are_read_as_blank_up_to_a_limit(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"one\n\xff\n" + "둘\n".encode() * 9 + b"\xffthree\nfour\xfe")
    bad = BadLines(3)
    for _ in range(2):
        found = [(piece.text, piece.line) for piece in read_pieces([path], Unit.LINE, bad)]
        assert found == [("one", 1), *(("둘", line) for line in range(3, 12))]
    assert bad.found == {(str(path), 2), (str(path), 12), (str(path), 13)}
    with pytest.raises(BrokenText, match=r"a\.txt, line 13: got 3 lines .* at most 2; --max-bad"):
        list(read_pieces([path], Unit.LINE, BadLines(2)))


@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_tolerance_of_bad_lines_does_not_change_valid_text(
    tmp_path: Path, chunk: int, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.txt", "\ufeff하나\r\n\n둘\r\n  셋".encode() + end)
    whole = list(read_pieces([path], Unit.FILE))
    monkeypatch.setattr(corpus, "_READ_BYTES", chunk)
    assert list(read_pieces([path], Unit.FILE, BadLines(1))) == whole


@pytest.mark.parametrize("unit", list(Unit))
def test_documents_read_in_pieces_are_unchanged(tmp_path: Path, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "\n\n".join("a" * n + " 한국어 " * n + "\r\nb, c" * n for n in (0, 1, 9, 70, 300)).encode() + b"\n"
    path = written(tmp_path / "a.txt", content)
    whole = list(read_documents([path], unit))
    monkeypatch.setattr(corpus, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(corpus, "_READ_BYTES", 7)
    assert list(read_documents([path], unit)) == whole
    pieces = list(read_pieces([path], unit))
    assert len(pieces) > len(whole)
    assert max(len(piece.text) for piece in pieces) < 400
    lines = content.decode().replace("\r\n", "\n").split("\n")
    assert all(piece.text.split("\n")[0] in lines[piece.line - 1] for piece in pieces)


@pytest.mark.parametrize("name", ["a.txt", "a.gz"])
@pytest.mark.parametrize("unit", list(Unit))
def test_invalid_utf8_is_reported_with_file_and_line(tmp_path: Path, name: str, unit: Unit) -> None:
    path = written(tmp_path / name, "좋다\n".encode() * 99_999 + b"good \xff bad\nmore\n")
    with pytest.raises(BrokenText, match=rf"{name}, line 100000: got byte 0xff") as caught:
        texts(path, unit)
    assert (caught.value.source, caught.value.line) == (str(path), 100_000)


def test_truncated_character_at_the_end_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "하나\n둘".encode()[:-1])
    with pytest.raises(BrokenText, match="line 2"):
        texts(path, Unit.LINE)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["plain text\n", "재미있는영화\n"])
def test_utf16_and_utf32_are_reported_by_name(tmp_path: Path, encoding: str, text: str) -> None:
    path = written(tmp_path / "a.txt", text.encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    for bad in (None, BadLines(1000)):
        with pytest.raises(BrokenText, match=rf"a\.txt, line 1: got {name}, expected .*; `iconv -f {name} -t UTF-8 "):
            list(read_pieces([path], Unit.LINE, bad))


def test_text_in_a_legacy_encoding_is_reported_with_the_command_that_converts_it(tmp_path: Path) -> None:
    data = "안녕하세요. 이 영화는 정말 재미있습니다.\n".encode("cp949")
    for name, content, command in (
        ("a.txt", data, "iconv -f CP949 -t UTF-8 {}"),
        ("b.txt", b"A licence in ASCII.\n" * 9000 + data, "iconv -f CP949 -t UTF-8 {}"),
        ("c.gz", data, "gzip -dc {} | iconv -f CP949 -t UTF-8"),
        ("d.txt", gzip.compress(data), "gzip -dc {} | iconv -f CP949 -t UTF-8"),
    ):
        path = written(tmp_path / name, content)
        hint = f"; it looks like CP949 (EUC-KR): `{command.format(path)}` converts it"
        for bad in (None, BadLines(0)):
            with pytest.raises(BrokenText) as caught:
                list(read_pieces([path], Unit.LINE, bad))
            assert str(caught.value).endswith(hint)


def test_truncated_gz_is_reported_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    content = b"".join(os.urandom(40).hex().encode() + b"\n" for _ in range(9000))
    path.write_bytes(gzip.compress(content)[:-1000])
    with pytest.raises(UnreadableFile, match=r"a\.gz, line \d+: got a damaged \.gz") as caught:
        texts(path, Unit.LINE)
    assert caught.value.line is not None
    assert 8900 < caught.value.line < 9000


@pytest.mark.parametrize("content", [b"plain text\n", b"\x1f\x8b\x08\x00garbage-garbage", b"\x1f\x8b"])
def test_invalid_gz_file_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"a\.gz"):
        texts(path, Unit.LINE)


def test_gz_file_with_a_wrong_checksum_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    packed = bytearray(gzip.compress(b"one\ntwo\n"))
    packed[-6] ^= 1
    path.write_bytes(packed)
    with pytest.raises(UnreadableFile, match=r"a\.gz, line 3"):
        texts(path, Unit.LINE)


def test_missing_file_and_folder_without_text_are_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none.txt", "empty"):
        with pytest.raises(UnreadableFile, match=name):
            list_files([tmp_path / name])


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read all files")
def test_file_without_read_permission_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b"text")
    path.chmod(0)
    with pytest.raises(UnreadableFile, match=r"a\.txt"):
        texts(path, Unit.LINE)
