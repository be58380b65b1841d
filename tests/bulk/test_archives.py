"""Test files in archives and copies of files: URLs that are chains of links, read from real archives."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meari.bulk.errors import BulkError
from meari.bulk.partitions import list_inputs
from meari.bulk.storage import content_name
from tests.bulk.command import meari
from tests.bulk.test_partitions import lines_in, partitions_of

LINES = b'{"text":"ab"}\n' * 30
TEXT = b"ab\n" * 20

PACKED = {
    "in.tar": "w",
    "in.tar.gz": "w:gz",
    "in.tar.bz2": "w:bz2",
    "in.tgz": "w:gz",
    "in.TAR.GZ": "w:gz",
    "in.taz": "w:gz",
    "in.tbz2": "w:bz2",
    "in.tbz": "w:bz2",
    "in.txz": "w:xz",
    "in.tar.xz": "w:xz",
    "download": "w:gz",
}


def files() -> dict[str, bytes]:
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["ab"] * 30}), parquet, row_group_size=10)
    return {
        "a.jsonl": LINES,
        "deep/b.jsonl.gz": gzip.compress(LINES),
        "deep/c.txt": TEXT,
        "d.parquet": parquet.getvalue(),
    }


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the same files in archives of several kinds, and one in an archive in another."""
    folder = tmp_path_factory.mktemp("archives")
    with zipfile.ZipFile(folder / "in.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files().items():
            packed.writestr(name, data)
    for name, mode in PACKED.items():
        with tarfile.open(folder / name, mode) as tar:  # type: ignore[call-overload]
            for member, data in files().items():
                about = tarfile.TarInfo(member)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    with zipfile.ZipFile(folder / "outer.zip", "w") as outer:
        for name in ("in.tar", "in.tgz"):
            outer.write(folder / name, name)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    return folder


CHAINS = [
    "zip://{}::file://{folder}/in.zip",
    *(f"tar://{{}}::file://{{folder}}/{name}" for name in PACKED),
    "tar://{}::simplecache::file://{folder}/in.tgz",
    "tar://{}::zip://in.tgz::file://{folder}/outer.zip",
    "zip://{}::{folder}/in.zip",
    "zip://{}::simplecache::file://{folder}/in.zip",
    "simplecache::zip://{}::file://{folder}/in.zip",
    "tar://{}::zip://in.tar::file://{folder}/outer.zip",
]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("member", "kind"), [("a.jsonl", "plain"), ("deep/b.jsonl.gz", "gzip"), ("d.parquet", "parquet")]
)
def test_file_in_an_archive_has_the_lines_of_the_file_alone(archives: Path, chain: str, member: str, kind: str) -> None:
    name = chain.format(member, folder=archives)
    found = list_inputs([name])
    assert [(one.name, one.kind) for one in found] == [(name, kind)]
    assert b"".join(map(lines_in, partitions_of(name, size=1))) == LINES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zip://deep/a.jsonl.gz::s3://bucket/b.zip", "zip://deep/a.jsonl.gz"),
        ("simplecache::s3://bucket/a.txt", "s3://bucket/a.txt"),
        ("simplecache::tar://a.txt::https://host/b.tar", "tar://a.txt"),
        ("s3://bucket/a.txt", "s3://bucket/a.txt"),
        ("odd::name.txt", "odd::name.txt"),
    ],
)
def test_link_that_is_the_file_tells_its_kind(name: str, expected: str) -> None:
    assert content_name(name) == expected


@pytest.mark.parametrize("archive", ["zip://{}::file://{folder}/in.zip", "tar://{}::file://{folder}/in.tar.gz"])
@pytest.mark.parametrize(("given", "expected"), [("deep", ["b.jsonl.gz", "c.txt"]), ("deep/*.txt", ["c.txt"])])
def test_folder_or_pattern_in_an_archive_is_its_files(
    archives: Path, archive: str, given: str, expected: list[str]
) -> None:
    found = [one.name for one in list_inputs([archive.format(given, folder=archives)])]
    assert found == [archive.format(f"deep/{name}", folder=archives) for name in expected]


@pytest.mark.parametrize(
    ("name", "is_cut"),
    [
        ("tar://a.jsonl::file://{}/in.tar", True),
        ("simplecache::file://{}/a.jsonl", True),
        ("tar://a.jsonl::file://{}/in.tar.gz", False),
        ("zip://a.jsonl::file://{}/in.zip", False),
    ],
)
def test_only_files_that_are_read_from_any_place_at_no_cost_are_cut(archives: Path, name: str, *, is_cut: bool) -> None:
    found = partitions_of(name.format(archives), size=len(LINES) // 3)
    assert (len(found) > 1) is is_cut
    assert sum(one.num_lines or 0 for one in found) == 30


def write_damaged(archives: Path, path: Path) -> None:
    data = bytearray((archives / "in.zip").read_bytes())
    data[len("a.jsonl") + 30] ^= 0xFF  # of the first member, after its head of 30 bytes and its name
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zip://none.txt::file://{}/in.zip", "No such file or directory"),
        ("zip://a.jsonl::file://{}/none.zip", "No such file or directory"),
        ("zip://a.jsonl::file://{}/a.jsonl", "File is not a zip file"),
        ("tar://a.jsonl::file://{}/a.jsonl", "truncated header: no tar archive, plain or in gzip, bzip2 or xz"),
        ("tar://a.jsonl::file://{}/in.zip", "no tar archive, plain or in gzip, bzip2 or xz"),
        ("tar://a.jsonl::file://{}/a.jsonl.gz", "no tar archive, plain or in gzip, bzip2 or xz"),
        ("file://{}/in.tgz", "got a tar archive, expected a file in it: tar://NAME::file:///"),
        ("file://{}/in.tbz2", "got a tar archive, expected a file in it: tar://NAME::file:///"),
        ("file://{}/in.zip", "got a ZIP archive, expected a file in it: zip://NAME::file:///"),
        ("simplecache::file://{}/in.tar.gz", "got a tar archive, expected a file in it: tar://NAME::simplecache::file"),
        ("rar://a.jsonl::file://{}/in.rar", "Protocol not known: rar"),
    ],
)
def test_what_cannot_be_read_in_an_archive_is_refused_by_its_name(archives: Path, name: str, message: str) -> None:
    given = name.format(archives)
    with pytest.raises(BulkError) as caught:
        partitions_of(given, size=100)
    assert str(caught.value).startswith(f"{given}: ")
    assert message in str(caught.value)


def test_damaged_member_of_an_archive_is_refused_when_it_is_read(archives: Path, tmp_path: Path) -> None:
    write_damaged(archives, tmp_path / "bad.zip")
    name = f"zip://a.jsonl::file://{tmp_path}/bad.zip"
    with pytest.raises(BulkError) as caught:
        partitions_of(name, size=100)
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["score", "{url}"], "FILE"),
        (["filter", "{url}", "-o", "out"], "FILE"),
        (["filter", "a.txt", "--reference", "{url}", "-o", "out"], "--reference"),
        (["generate", "--prompts", "{url}"], "--prompts"),
    ],
)
def test_url_is_refused_without_ray_and_the_message_names_the_option(
    bundles: Path, archives: Path, tmp_path: Path, words: list[str], option: str
) -> None:
    url = f"zip://a.jsonl::file://{archives}/in.zip"
    given = [{"{url}": url, "a.txt": str(archives / "a.jsonl"), "out": str(tmp_path / "out")}.get(x, x) for x in words]
    done = meari(*given, "--bundles", bundles)
    assert done.returncode == 2
    message = " ".join(done.stderr.decode().split())
    assert f"{option}: got {url}, a URL, expected a path, or --engine ray, which reads URLs" in message
    assert not (tmp_path / "out").exists()
