"""Test that corpora are fetched, compared by hash and split: stand-in files on a local server."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.corpora import CORPORA, CorporaError, Corpus, main, make_corpus
from meari.models.config import load_config

ROOT = Path(__file__).parents[2]
PLAYS, REVIEWS, BOOKS = CORPORA


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return the folder of files that the mirror serves."""
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def mirror(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def publish(site: Path, corpus: Corpus, content: bytes) -> None:
    path = site / corpus.url.removeprefix("https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def archive(movies: dict[str, list[str]]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("nsmc-master/README.md", "reviews")
        for name, reviews in movies.items():
            content = json.dumps([{"review": review, "rating": "10"} for review in reviews])
            file.writestr(f"nsmc-master/raw/{name}.json", content)
    return packed.getvalue()


def plays(content: bytes) -> Corpus:
    return replace(PLAYS, sha256=sha256(content), files={"input.txt": sha256(content)})


def test_source_with_a_known_hash_is_fetched_once_and_compared(tmp_path: Path, site: Path, mirror: str) -> None:
    corpus = plays(b"To be, or not to be.\n")
    publish(site, corpus, b"To be, or not to be.\n")
    make_corpus(corpus, tmp_path / "corpora", mirror)
    assert (tmp_path / "corpora/tinyshakespeare/input.txt").read_bytes() == b"To be, or not to be.\n"
    make_corpus(corpus, tmp_path / "corpora", "http://127.0.0.1:1")  # it is there: nothing is asked for


def test_reviews_are_cleaned_and_split_by_the_hash_of_their_text(tmp_path: Path, site: Path, mirror: str) -> None:
    reviews = [f"영화 {number}  번째\t감상" for number in range(400)]
    movies = {"10001": reviews[:200], "10002": [*reviews[200:], reviews[0], " ", "e\u0301"]}
    publish(site, REVIEWS, archive(movies))
    with pytest.raises(
        CorporaError, match=r"nsmc/train\.txt\.gz: got SHA-256 \w+ of its lines, sorted, expected ac15b5"
    ):
        make_corpus(REVIEWS, tmp_path / "corpora", mirror)
    assert not (tmp_path / "corpora/nsmc").exists()
    texts = [*(f"영화 {number} 번째 감상" for number in range(400)), "é"]
    shares = {text: int(sha256(text.encode())[:8], 16) % 100 for text in texts}
    parts = {
        "valid.txt": [text for text in texts if shares[text] == 0],
        "test.txt": [t for t in texts if shares[t] == 1],
    }
    parts["train.txt.gz"] = sorted(text for text in texts if shares[text] > 1)
    files = {name: sha256("".join(f"{text}\n" for text in part).encode()) for name, part in parts.items()}
    make_corpus(replace(REVIEWS, files=files), tmp_path / "corpora", mirror)
    written = gzip.decompress((tmp_path / "corpora/nsmc/train.txt.gz").read_bytes()).decode().splitlines()
    assert sorted(written) == parts["train.txt.gz"]
    assert parts["valid.txt"]
    assert parts["test.txt"]


def test_unreachable_mirror_is_answered_with_the_file_to_put_in_place(tmp_path: Path, mirror: str) -> None:
    corpus = plays(b"text")
    with pytest.raises(CorporaError) as refused:
        make_corpus(corpus, tmp_path / "corpora", mirror)
    place = tmp_path / "corpora/downloads/tinyshakespeare.txt"
    assert "404" in str(refused.value)
    assert f"put it in place as {place}, SHA-256 {sha256(b'text')}" in str(refused.value)
    place.write_bytes(b"text")
    make_corpus(corpus, tmp_path / "corpora", mirror)
    assert (tmp_path / "corpora/tinyshakespeare/input.txt").read_bytes() == b"text"


def test_wrong_download_and_damaged_archive_are_refused(tmp_path: Path, site: Path, mirror: str) -> None:
    publish(site, PLAYS, b"something else")
    with pytest.raises(CorporaError, match=r"input\.txt: got SHA-256 \w+, expected 86c4e6aa.*put it in place"):
        make_corpus(PLAYS, tmp_path / "corpora", mirror)
    assert not list((tmp_path / "corpora/downloads").iterdir())
    (tmp_path / "corpora/downloads/tinyshakespeare.txt").write_text("something else")
    with pytest.raises(CorporaError, match=r"tinyshakespeare\.txt: got SHA-256 \w+, expected 86c4e6aa.*remove it"):
        make_corpus(PLAYS, tmp_path / "corpora", mirror)
    publish(site, REVIEWS, b"no archive")
    with pytest.raises(CorporaError, match=r"nsmc-master\.zip: got .*expected the archive of https"):
        make_corpus(REVIEWS, tmp_path / "corpora", mirror)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "was cut off after 4 of 10 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\n\r\nhalf", "got SHA-256"),
        (b"no HTTP\r\n\r\n", "no HTTP"),
        (b"", "Remote end closed connection"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nha", "503"),
    ],
)
def test_server_that_fails_midway_leaves_nothing_and_can_be_asked_again(
    tmp_path: Path, site: Path, mirror: str, answer: bytes, reason: str
) -> None:
    corpus = plays(b"whole text")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def break_off() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=break_off)
        thread.start()
        with pytest.raises(CorporaError, match=f"{reason}.*; get this file in another way, put it in place as"):
            make_corpus(corpus, tmp_path / "corpora", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert not list((tmp_path / "corpora/downloads").iterdir())
    publish(site, corpus, b"whole text")
    make_corpus(corpus, tmp_path / "corpora", mirror)
    assert (tmp_path / "corpora/tinyshakespeare/input.txt").read_bytes() == b"whole text"


def test_archive_with_damaged_members_is_refused(tmp_path: Path, site: Path, mirror: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("nsmc-master/raw/1.json", json.dumps([{"review": f"{number}"} for number in range(999)]))
    content = bytearray(packed.getvalue())
    content[80:120] = bytes(40)
    publish(site, REVIEWS, bytes(content))
    with pytest.raises(CorporaError, match=r"nsmc-master\.zip: got .*; remove it"):
        make_corpus(REVIEWS, tmp_path / "corpora", mirror)


def test_files_that_were_put_in_place_are_compared(tmp_path: Path) -> None:
    for present in ([], ["train.txt"]):
        (tmp_path / "books").mkdir(exist_ok=True)
        for name in present:
            (tmp_path / "books" / name).touch()
        with pytest.raises(CorporaError, match=r"books: Pepys.*cannot be made from them; put in place") as error:
            make_corpus(BOOKS, tmp_path)
        for name, sha256 in BOOKS.files.items():
            line = f"\n  {tmp_path / 'books' / name}, SHA-256 {sha256}"
            assert (line in str(error.value)) == (name not in present)
    for name in BOOKS.files:
        (tmp_path / "books" / name).write_text("another text\n")
    with pytest.raises(CorporaError, match=r"books/train\.txt: got SHA-256 \w+, expected 78e238"):
        make_corpus(BOOKS, tmp_path)


def test_all_problems_are_told(tmp_path: Path, mirror: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "corpora"), "--mirror", mirror]) == 1
    told = capsys.readouterr().err
    assert [name for name in ("tinyshakespeare: ", "nsmc: ", "books: ") if f"make corpora: {name}" in told] == [
        "tinyshakespeare: ",
        "nsmc: ",
        "books: ",
    ]


def test_files_are_those_that_the_released_configs_name() -> None:
    named = set()
    for path in (ROOT / "models/configs").glob("*.toml"):
        corpus = load_config(path).corpus
        named |= {file.removeprefix("../shared/corpora/") for file in (*corpus.train, *corpus.validation, *corpus.test)}
    assert named == {f"{corpus.name}/{name}" for corpus in CORPORA for name in corpus.files}
