"""Test that a signature vouches for a bundle's bytes, and that a service with signing keys serves no other bundle."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meari.bundle_format.reader import read_manifest
from meari.bundle_format.signatures import PublicKey, make_private_key, parse_public_keys, read_signature, sign_manifest
from meari.errors import BundleError
from meari.runtime.bundle import open_bundle
from tests.bulk.command import meari
from tests.runtime.tiny_bundle import rewrite_manifest, write_tiny_bundle
from tests.service.running import running_server


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, PublicKey]:
    path = tmp_path / "key.pem"
    return path, make_private_key(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundles" / "tiny")


def sign(folder: Path, key: Path) -> str:
    """Sign a bundle and return its hash."""
    bundle_hash = read_manifest(folder)[1]
    sign_manifest(folder, bundle_hash, key)
    return bundle_hash


def edit_signature(folder: Path, **changes: object) -> None:
    path = folder / "signature.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_signed_bundle_opens_with_the_same_hash_and_files(folder: Path, keys: tuple[Path, PublicKey]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bundle_hash = sign(folder, keys[0])
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() - before.keys() == {"signature.json"}
    assert before.items() <= after.items()
    assert open_bundle(folder, max_slots=1, signing_keys=[keys[1]]).hash == bundle_hash
    assert open_bundle(folder, max_slots=1).hash == bundle_hash


def test_another_key_replaces_the_signature(folder: Path, keys: tuple[Path, PublicKey], tmp_path: Path) -> None:
    other = make_private_key(tmp_path / "other.pem")
    sign(folder, tmp_path / "other.pem")
    with pytest.raises(
        BundleError, match=rf"signature\.json: got one by the key {other.id}, .* by the key {keys[1].id}"
    ):
        open_bundle(folder, max_slots=1, signing_keys=[keys[1]])
    bundle_hash = sign(folder, keys[0])
    assert read_signature(folder, bundle_hash) == keys[1]
    assert open_bundle(folder, max_slots=1, signing_keys=[other, keys[1]]).hash == bundle_hash


def test_unsigned_bundle_is_refused_where_keys_are_set(folder: Path, keys: tuple[Path, PublicKey]) -> None:
    with pytest.raises(BundleError, match=rf"signature\.json: missing, expected a signature by the key {keys[1].id}"):
        open_bundle(folder, max_slots=1, signing_keys=[keys[1]])


def mend(folder: Path) -> None:
    """Change a file and the manifest's hash of it, as one does who wants the change to go unnoticed."""
    (folder / "README.md").write_text("Another card.", "utf-8")
    rewrite_manifest(folder)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda folder: (folder / "README.md").write_text("x", "utf-8"), r"README\.md: got 1 bytes"),
    "a file and its hash": (mend, r"signature\.json: the key \w+ has not signed this manifest\.json"),
    "a byte of the manifest": (
        lambda folder: (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b" "),
        "has not signed this",
    ),
    "the signature": (lambda folder: edit_signature(folder, signature=base64.b64encode(bytes(64)).decode()), "has not"),
    "its length": (lambda folder: edit_signature(folder, signature=base64.b64encode(bytes(63)).decode()), "has not"),
    "nothing of it": (lambda folder: edit_signature(folder, signature=""), "has not signed"),
    "its alphabet": (lambda folder: edit_signature(folder, signature="§"), "got other than a signature"),
    "the key's name": (lambda folder: edit_signature(folder, key_id="0" * 16), r"key_id: got '0+', expected"),
    "the key": (lambda folder: edit_signature(folder, public_key=PublicKey(bytes(32)).text), "key_id: got"),
    "the version": (lambda folder: edit_signature(folder, format_version=2), "got other than a signature"),
    "a field": (lambda folder: edit_signature(folder, trusted=True), "got other than a signature"),
    "its kind": (lambda folder: (folder / "signature.json").write_bytes(b"["), "got other than a signature"),
    "its depth": (lambda folder: (folder / "signature.json").write_bytes(b"[" * 60_000), "got other than a signature"),
    "its size": (lambda folder: (folder / "signature.json").write_bytes(b" " * 70_000), "got 70,000 bytes"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_bundle_is_refused(folder: Path, keys: tuple[Path, PublicKey], change: str) -> None:
    sign(folder, keys[0])
    edit, message = CHANGES[change]
    edit(folder)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder, max_slots=1, signing_keys=[keys[1]])


def test_signature_of_another_bundle_does_not_fit(folder: Path, keys: tuple[Path, PublicKey], tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "bundles" / "other", decay=0.1)
    sign(folder, keys[0])
    shutil.copy(folder / "signature.json", other)
    with pytest.raises(BundleError, match="has not signed this"):
        open_bundle(other, max_slots=1, signing_keys=[keys[1]])


def test_signature_cannot_be_a_file_of_the_manifest(folder: Path, keys: tuple[Path, PublicKey]) -> None:
    sign(folder, keys[0])
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"]["signature.json"] = manifest["files"]["README.md"]
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError, match=r"files: got .signature\.json., expected a plain name of a file other than"):
        open_bundle(folder, max_slots=1)


@pytest.mark.parametrize("kind", ["FIFO", "link out"])
def test_signature_is_a_regular_file_inside(
    folder: Path, keys: tuple[Path, PublicKey], tmp_path: Path, kind: str
) -> None:
    sign(folder, keys[0])
    path = folder / "signature.json"
    path.rename(tmp_path / "elsewhere.json")
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match=r"signature\.json: got a (FIFO|link out of its folder), expected a file"):
        open_bundle(folder, max_slots=1, signing_keys=[keys[1]])


def test_private_key_is_readable_by_its_owner_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = make_private_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        make_private_key(path)
    path.unlink()
    with pytest.raises(FileExistsError):
        make_private_key(path)
    assert not path.exists()
    assert parse_public_keys(str(tmp_path / "key.pem.pub")) == (made,)


def test_setting_takes_a_file_of_keys_or_a_list(tmp_path: Path) -> None:
    made = [make_private_key(tmp_path / name) for name in ("a.pem", "b.pem")]
    (tmp_path / "both.pem").write_text(
        "".join((tmp_path / f"{name}.pem.pub").read_text("ascii") for name in "ab"), "ascii"
    )
    assert parse_public_keys(str(tmp_path / "both.pem")) == tuple(made)
    assert parse_public_keys(", ".join(key.text for key in made)) == tuple(made)
    (tmp_path / "link.pem").symlink_to("both.pem")
    assert parse_public_keys(str(tmp_path / "link.pem")) == tuple(made)


@pytest.mark.parametrize("content", ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "한"])
def test_file_without_usable_keys_is_no_setting(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.pem").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"|."):
        parse_public_keys(str(tmp_path / "keys.pem"))
    with pytest.raises(ValueError, match=r"|."):
        parse_public_keys(str(tmp_path / "nothing.pem"))


def test_keys_and_signatures_are_those_of_openssl(folder: Path, keys: tuple[Path, PublicKey], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl was not found")
    made = tmp_path / "openssl.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", made], check=True)
    written = subprocess.run(["openssl", "pkey", "-in", made, "-pubout"], check=True, capture_output=True, text=True)
    (tmp_path / "openssl.pub").write_text(written.stdout, "ascii")
    [key] = parse_public_keys(str(tmp_path / "openssl.pub"))
    bundle_hash = sign(folder, made)
    assert read_signature(folder, bundle_hash) == key
    (tmp_path / "message").write_bytes(b"meari bundle manifest v1\n" + bundle_hash.encode())
    found = json.loads((folder / "signature.json").read_text("utf-8"))
    (tmp_path / "raw").write_bytes(base64.b64decode(found["signature"]))
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(tmp_path / "openssl.pub"), "-rawin"]
    subprocess.run([*verify, "-in", tmp_path / "message", "-sigfile", tmp_path / "raw"], check=True)


def run(*arguments: object, keys: str = "") -> dict[str, Any]:
    done = meari(*arguments, signing_keys=keys)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_verb_signs_and_inspect_tells_who_did(folder: Path, tmp_path: Path) -> None:
    made = run("sign", "--new-key", tmp_path / "key.pem", "--json")
    assert run("inspect", folder, "--json")["signature"] is None
    signed = run("sign", folder, "--key", tmp_path / "key.pem", "--json")
    assert (signed["key_id"], signed["bundle_hash"]) == (made["key_id"], read_manifest(folder)[1])
    for keys in ("", str(tmp_path / "key.pem.pub")):
        signature = run("inspect", folder, "--json", keys=keys)["signature"]
        assert signature == {"key_id": made["key_id"], "public_key": made["public_key"], "trusted": bool(keys)}
    mend(folder)
    changed = meari("inspect", folder)
    assert changed.returncode == 1
    assert b"has not signed this manifest.json" in changed.stderr


def test_verb_refuses_a_damaged_bundle_and_a_file_that_is_no_key(folder: Path, tmp_path: Path) -> None:
    make_private_key(tmp_path / "key.pem")
    wrong = meari("sign", folder, "--key", tmp_path / "key.pem.pub")
    assert (wrong.returncode, b"expected one Ed25519 private key" in wrong.stderr) == (1, True)
    (folder / "README.md").write_text("x", "utf-8")
    damaged = meari("sign", folder, "--key", tmp_path / "key.pem")
    assert (damaged.returncode, b"README.md: got 1 bytes" in damaged.stderr) == (1, True)
    assert not (folder / "signature.json").exists()
    assert meari("sign", folder).returncode == 2


def test_command_line_uses_signed_bundles_alone(folder: Path, keys: tuple[Path, PublicKey]) -> None:
    write_tiny_bundle(folder.parent / "another")
    sign(folder, keys[0])
    listed = run("models", "--bundles", folder.parent, "--json", keys=keys[1].text)
    assert ([model["name"] for model in listed["models"]], listed["default"]) == (["tiny"], "tiny")
    assert "signature.json: missing" in listed["failed"]["another"]
    assert "logprob" in run("score", "--text", "ab", "--bundles", folder.parent, "--json", keys=keys[1].text)
    for verb in (("score", "--text", "ab"), ("score", "-"), ("generate", "ab"), ("generate", "--prompts", "-")):
        done = meari(*verb, "--model", folder.parent / "another", signing_keys=keys[1].text, stdin="ab\n")
        assert (done.returncode, b"signature.json: missing" in done.stderr) == (1, True), (verb, done.stderr)


def test_service_serves_signed_bundles_alone_and_names_the_others(
    folder: Path, keys: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    for name in ("changed", "unsigned", "foreign"):
        write_tiny_bundle(folder.parent / name)
    make_private_key(tmp_path / "foreign.pem")
    sign(folder, keys[0])
    sign(folder.parent / "changed", keys[0])
    mend(folder.parent / "changed")
    sign(folder.parent / "foreign", tmp_path / "foreign.pem")
    with running_server(tmp_path, bundles=folder.parent, signing_keys=f"{keys[0]}.pub") as server:
        ready = server.client.get("/readyz").json()
        assert [model["name"] for model in server.client.get("/models").json()["models"]] == ["tiny"]
        reasons = {"changed": "has not signed", "unsigned": "missing", "foreign": "got one by the key"}
        for name, reason in reasons.items():
            assert reason in json.dumps(ready), ready
            assert server.client.post("/score", json={"model": name, "text": "ab"}).status_code == 404
            assert any(name in line and reason in line for line in server.log.splitlines())
