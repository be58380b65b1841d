"""Corpora of the released configs: `python -m benchmarks.corpora FOLDER`, or `make corpora`.

Input: public sources, by URL or as files that lie in FOLDER/downloads. Output: the files that `models/configs/` name,
compared with their SHA-256. Must not know: any package besides Python's own library.

    tinyshakespeare   the source itself, whose hash is known
    nsmc              all reviews of the repository's archive: spaces joined, NFC, the first of equal ones; by the first
                      32 bits of the text's SHA-256 modulo 100: 0 validation, 1 test, else training. An archive's hash
                      changes with the packer, so the parts are compared: training by its lines in sorted order, for the
                      order of the released one is not recorded
    books             how paragraphs were taken from the editions is not recorded: the parts must be put in place, and
                      are compared
"""

import argparse
import gzip
import hashlib
import http.client
import json
import shutil
import sys
import unicodedata
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOWNLOADS = "downloads"
TIMEOUT_SECONDS = 60
# What a damaged, encrypted or other archive leads to.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError, TypeError)
VALIDATION, TEST, NUM_SHARES = 0, 1, 100  # of the hash of a review


class CorporaError(Exception):
    """A source that cannot be had, or a file that is not the expected one; says what to do."""


@dataclass(frozen=True)
class Corpus:
    """A corpus of the released configs.

    files     of the folder NAME, each with its SHA-256
    unsorted  names of those whose lines are sorted before they are hashed
    url       of the source, "" if the files must be put in place
    download  name of the source in FOLDER/downloads
    sha256    of the source, "" if it is not known
    make      source, folder of the corpus → its files
    why_not   what the files are, and why they cannot be made, where they must be put in place
    """

    name: str
    files: dict[str, str]
    url: str = ""
    download: str = ""
    sha256: str = ""
    make: Callable[[Path, Path], None] | None = None
    unsorted: frozenset[str] = field(default_factory=frozenset)
    why_not: str = ""


def copy_text(source: Path, folder: Path) -> None:
    """The source is the corpus."""
    shutil.copyfile(source, folder / "input.txt")


def split_reviews(source: Path, folder: Path) -> None:
    """Write the parts of the reviews in a ZIP archive of e9t/nsmc."""
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if "/raw/" in name and name.endswith(".json"))
        reviews = list(dict.fromkeys(_clean(review) for name in names for review in _reviews(archive.read(name))))
    parts: dict[int, list[str]] = {VALIDATION: [], TEST: [], NUM_SHARES: []}
    for review in filter(None, reviews):
        share = int.from_bytes(hashlib.sha256(review.encode()).digest()[:4], "big") % NUM_SHARES
        parts[share if share in parts else NUM_SHARES].append(review)
    (folder / "valid.txt").write_bytes(_lines(parts[VALIDATION]))
    (folder / "test.txt").write_bytes(_lines(parts[TEST]))
    with (folder / "train.txt.gz").open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(_lines(parts[NUM_SHARES]))


def _reviews(content: bytes) -> Iterable[str]:
    return (entry["review"] for entry in json.loads(content))


def _clean(review: str) -> str:
    return unicodedata.normalize("NFC", " ".join(review.split()))


def _lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


CORPORA = (
    Corpus(
        "tinyshakespeare",
        {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "tinyshakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        copy_text,
    ),
    Corpus(
        "nsmc",
        {
            "train.txt.gz": "ac15b50c340b08154951d47094f24b6b0ee224efae2ed6e3528abfa04127f0eb",
            "valid.txt": "ac9e5e52f0d310cf67cb4a08b543c83a8696804a25d6a2563a58cb6704253ce3",
            "test.txt": "3340c1b4499d6659f340f776865fda70a637ee5592e3ffc219f74730c2e5a90a",
        },
        "https://github.com/e9t/nsmc/archive/refs/heads/master.zip",
        "nsmc-master.zip",
        make=split_reviews,
        unsorted=frozenset({"train.txt.gz"}),
    ),
    Corpus(
        "books",
        {
            "train.txt": "78e238656b3736b5d2c90d29c3288374466600ede5290fdcc668a92c80188daf",
            "valid.txt": "d846c2e7c30e9c700406e11b973fd10d8afa534d2f644a578ff45bfd9fd3daac",
            "test.txt": "badf91103fc23a71d0a8e6e81afed90765856f5051c5614c8ef00991da3701f7",
        },
        why_not=(
            "Pepys' diary and War and Peace (standardebooks.org), a paragraph a line, in blocks of 50 paragraphs 18 of "
            "20 for training, one validation, one test; which editions they were is not recorded, so they cannot be "
            "made from them"
        ),
    ),
)


def make_corpus(corpus: Corpus, folder: Path, mirror: str = "") -> None:
    """Make sure that a corpus lies in its folder, and that each file is the expected one.

    mirror   URL that stands before HOST/PATH of the source, in place of its scheme

    Files that are there are compared and never replaced. Raises CorporaError.
    """
    own = folder / corpus.name
    if all((own / name).is_file() for name in corpus.files):
        _compare(corpus, own)
        return
    if corpus.make is None:
        absent = [name for name in corpus.files if not (own / name).is_file()]
        files = "".join(f"\n  {own / name}, SHA-256 {corpus.files[name]}" for name in absent)
        raise CorporaError(f"{corpus.name}: {corpus.why_not}; put in place, and they are compared:{files}")
    source = _source(corpus, folder / DOWNLOADS, mirror)
    half = folder / f"{corpus.name}.half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        corpus.make(source, half)
        _compare(corpus, half)
        own.mkdir(exist_ok=True)
        for name in corpus.files:
            (half / name).replace(own / name)
    except UNREADABLE as error:
        raise CorporaError(f"{source}: got {error}, expected the archive of {corpus.url}; remove it") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _source(corpus: Corpus, downloads: Path, mirror: str) -> Path:
    """Return the source's file: the one that was put there, or a download."""
    path = downloads / corpus.download
    if not path.is_file():
        downloads.mkdir(parents=True, exist_ok=True)
        half = path.with_name(path.name + ".half")
        try:
            _download(corpus, half, mirror, path)
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
    elif corpus.sha256 and _sha256(path) != corpus.sha256:
        raise CorporaError(f"{path}: got SHA-256 {_sha256(path)}, expected {corpus.sha256}; remove it and try again")
    return path


def _download(corpus: Corpus, half: Path, mirror: str, place: Path) -> None:
    """Write a whole source to a file. Raises CorporaError, which says where another copy is to be put: `place`."""
    url = f"{mirror.rstrip('/')}/{corpus.url.partition('://')[2]}" if mirror else corpus.url
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer,  # noqa: S310 (of the table, or the user's)
            half.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file)
            length, size = answer.headers["Content-Length"], file.tell()
        _check_whole(half, size if length is None else int(length), corpus.sha256)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = " ".join(str(error).split()) or type(error).__name__
        hashed = f", SHA-256 {corpus.sha256}" if corpus.sha256 else ""
        raise CorporaError(
            f"{corpus.name}: {url}: {reason}; get this file in another way, put it in place as {place}{hashed}, "
            "and run the command again"
        ) from error


def _check_whole(path: Path, num_bytes: int, sha256: str) -> None:
    """Raise ValueError for a download that was cut off, or is another than the hash says, "" for any."""
    size = path.stat().st_size
    if size != num_bytes:
        raise ValueError(f"was cut off after {size:,} of {num_bytes:,} bytes")
    if sha256 and _sha256(path) != sha256:
        raise ValueError(f"got SHA-256 {_sha256(path)}, expected {sha256}")


def _compare(corpus: Corpus, folder: Path) -> None:
    for name, expected in corpus.files.items():
        found = _sha256_of_sorted(folder / name) if name in corpus.unsorted else _sha256(folder / name)
        if found != expected:
            how = " of its lines, sorted" if name in corpus.unsorted else ""
            raise CorporaError(
                f"{corpus.name}/{name}: got SHA-256 {found}{how}, expected {expected}: "
                "not the text that the released bundles were trained and measured on"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_sorted(path: Path) -> str:
    with gzip.open(path) as file:
        return hashlib.sha256(b"".join(sorted(file))).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all corpora; return 0, or 1 after a line for each that is missing or not as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the configs look: ../shared/corpora")
    parser.add_argument(
        "--mirror", default="", metavar="URL", help="asked for URL/HOST/PATH in place of https://HOST/PATH"
    )
    options = parser.parse_args(arguments)
    failed = 0
    for corpus in CORPORA:
        try:
            make_corpus(corpus, options.folder, options.mirror)
            sys.stdout.write(f"{options.folder / corpus.name}: as expected\n")
        except (CorporaError, OSError) as error:
            failed = 1
            sys.stderr.write(f"make corpora: {error}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
