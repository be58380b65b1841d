"""Test the loaded bundles, the default model, and the reports of bundles that cannot be loaded."""

from __future__ import annotations

import gc
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import UNSET

from meari.bundle_format.folders import Roots
from meari.bundle_format.reader import read_manifest
from meari.errors import NotReady, UnknownModel
from meari.runtime.bundle import open_bundle
from meari.runtime.engine import Engine, GenerateCall
from meari.runtime.engine.cache import CacheRoom, PrefixCache
from meari.service.service import Registry
from meari.service.settings import Settings
from meari.service.workers import Place
from tests.patience import PATIENCE, until
from tests.runtime.tiny_bundle import write_tiny_bundle

Open = Callable[..., Registry]
RELEASED = Path(__file__).resolve().parents[2] / "bundles"


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    folder = tmp_path / "bundles"
    for name in ("alpha", "beta"):
        write_tiny_bundle(folder / name)
    return folder


@pytest.fixture
def open_registry() -> Iterator[Open]:
    opened: list[Registry] = []

    def make(bundles: Roots, **settings: str) -> Registry:
        of_test = Settings(bundles=bundles, workers=1, **settings)  # type: ignore[arg-type]
        registry = Registry(of_test, Place(), poll_seconds=0.05)
        opened.append(registry)
        registry.start()
        assert registry.wait_loaded(PATIENCE)
        return registry

    yield make
    for registry in opened:
        registry.stop()


def test_first_by_name_is_the_default(bundles: Path, open_registry: Open) -> None:
    assert open_registry(bundles).get(UNSET).name == "alpha"


def test_file_in_the_folder_names_the_default(bundles: Path, open_registry: Open) -> None:
    (bundles / "DEFAULT").write_text("beta\n", "utf-8")
    assert open_registry(bundles).get(UNSET).name == "beta"


def test_setting_overrides_the_default_of_the_folder(bundles: Path, open_registry: Open) -> None:
    (bundles / "DEFAULT").write_text("beta\n", "utf-8")
    assert open_registry(bundles, default_model="alpha").get(UNSET).name == "alpha"


@pytest.mark.parametrize("name", ["gamma", "", "../alpha"])
def test_default_that_is_not_served_is_ignored(bundles: Path, open_registry: Open, name: str) -> None:
    (bundles / "DEFAULT").write_text(name, "utf-8")
    assert open_registry(bundles).get(UNSET).name == "alpha"


def test_broken_bundle_is_reported_and_the_others_are_served(bundles: Path, open_registry: Open) -> None:
    (bundles / "alpha" / "cell.onnx").write_bytes(b"changed")
    registry = open_registry(bundles)
    readiness = registry.readiness()
    assert readiness.ready
    assert readiness.models == ("beta",)
    assert "cell.onnx: got 7 bytes" in readiness.failed["alpha"]
    with pytest.raises(UnknownModel, match=r"'alpha' could not be loaded: cell\.onnx"):
        registry.get("alpha")


def test_temporary_folders_are_ignored(bundles: Path, open_registry: Open) -> None:
    for name in (".alpha", "alpha.new", "alpha.old", "_notes"):
        (bundles / name).mkdir()
    readiness = open_registry(bundles).readiness()
    assert readiness.models == ("alpha", "beta")
    assert readiness.failed == {}


def test_service_without_bundles_is_not_ready_with_the_reason(tmp_path: Path, open_registry: Open) -> None:
    registry = open_registry(tmp_path / "nowhere")
    assert not registry.readiness().ready
    with pytest.raises(NotReady, match="there is no folder"):
        registry.get(UNSET)


def test_every_model_can_use_the_whole_cache() -> None:
    for folder in (folder for folder in RELEASED.iterdir() if folder.is_dir()):
        runner = open_bundle(folder, max_slots=1).runner
        assert runner.cached_hidden_size == 0  # the hidden vector is part of the state and not stored twice
        shapes = {tensor.name: tensor.shape for tensor in runner.state_tensors}
        assert PrefixCache(CacheRoom(Settings().cache_bytes), shapes, 0).max_tokens > 1001


def test_models_share_one_cache(open_registry: Open, bundles: Path) -> None:
    registry = open_registry(bundles, cache_bytes=60_000)  # one of these prompts fits
    first, second = (registry.get(name).engine for name in ("alpha", "beta"))
    alone = [cached_tokens(engine) for engine in (first, first, second, second)]
    assert alone == [0, 40, 0, 40]
    assert 0 < cached_tokens(first) < 40  # the second model's prompt has evicted that of the first


def test_changed_bundle_takes_the_place_of_the_old_one(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    old = registry.get("alpha")
    put(bundles, "alpha", peak=5.0)
    until(lambda: registry.get("alpha") is not old)
    assert registry.get("alpha").bundle.hash != old.bundle.hash
    until(lambda: not old.engine.is_ready)
    assert registry.get("alpha").engine.is_ready
    until(lambda: registry.readiness().models == ("alpha", "beta"))
    assert (registry.readiness().ready, registry.readiness().failed) == (True, {})


def test_bundle_can_come_and_go(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    put(bundles, "gamma")
    until(lambda: registry.readiness().models == ("alpha", "beta", "gamma"))
    gone = registry.get("alpha")
    (bundles / "alpha").rename(bundles / ".alpha")
    until(lambda: registry.readiness().models == ("beta", "gamma"))
    with pytest.raises(UnknownModel, match="got 'alpha', expected one of beta, gamma"):
        registry.get("alpha")
    assert registry.get(UNSET).name == "beta"
    until(lambda: not gone.engine.is_ready)


def test_default_follows_the_folder(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    (bundles / "DEFAULT").write_text("beta", "utf-8")
    until(lambda: registry.get(UNSET).name == "beta")
    (bundles / "DEFAULT").write_text("gamma", "utf-8")
    until(lambda: "DEFAULT" in registry.readiness().failed)
    assert registry.get(UNSET).name == "alpha"


def test_request_ends_on_the_engine_that_it_began_with(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    old = registry.borrow("alpha")
    put(bundles, "alpha", peak=5.0)
    until(lambda: registry.get("alpha") is not old)
    assert cached_tokens(old.engine) == 0  # takes requests
    put(bundles, "gamma")
    until(lambda: "gamma" in registry.readiness().models)
    assert old.engine.is_ready
    registry.give_back(old)
    until(lambda: not old.engine.is_ready)
    assert registry.get("alpha").engine.is_ready


def test_no_more_than_three_versions_of_a_bundle_are_in_memory(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    borrowed = []
    for peak in (5.0, 6.0):
        borrowed.append(registry.borrow("alpha"))
        put(bundles, "alpha", peak=peak)
        until(lambda: registry.get("alpha") is not borrowed[-1])
    third = registry.get("alpha")
    put(bundles, "alpha", peak=7.0)
    put(bundles, "gamma")
    until(lambda: "gamma" in registry.readiness().models)
    assert registry.get("alpha") is third
    registry.give_back(borrowed[0])
    until(lambda: registry.get("alpha") is not third)
    registry.give_back(borrowed[1])


def test_broken_bundle_leaves_the_old_one_and_is_named_once(
    bundles: Path, open_registry: Open, caplog: pytest.LogCaptureFixture
) -> None:
    registry = open_registry(bundles)
    old = registry.get("alpha")
    broken = write_tiny_bundle(bundles / ".new" / "alpha", peak=5.0)
    data = (broken / "cell.onnx").read_bytes()
    (broken / "cell.onnx").write_bytes(data[:-1] + b"?")
    replace(bundles / "alpha", broken)
    until(lambda: "SHA-256" in registry.readiness().failed.get("alpha", ""))
    put(bundles, "gamma")
    until(lambda: "gamma" in registry.readiness().models)  # several looks later
    assert registry.get("alpha") is old
    assert [line for line in caplog.messages if "alpha" in line and "still served" in line] == [
        f"bundle alpha cannot be served: {registry.readiness().failed['alpha']}; the one before is still served"
    ]
    (bundles / "alpha" / "cell.onnx").write_bytes(data)
    until(lambda: registry.get("alpha") is not old)
    assert registry.readiness().failed == {}


def test_same_bundle_again_is_not_loaded_again(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    old = registry.get("alpha")
    shutil.copytree(bundles / "alpha", bundles / ".new" / "alpha")
    replace(bundles / "alpha", bundles / ".new" / "alpha")
    put(bundles, "gamma")
    until(lambda: "gamma" in registry.readiness().models)
    assert registry.get("alpha") is old


def test_damage_to_a_served_bundle_is_named_and_served_on(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    old = registry.get("alpha")
    (bundles / "alpha" / "output.onnx").unlink()
    until(lambda: "output.onnx" in registry.readiness().failed.get("alpha", ""))
    assert registry.get("alpha") is old
    assert registry.readiness().ready


def test_folder_that_cannot_be_read_is_named_and_served_on(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    bundles.rename(bundles.with_name("elsewhere"))
    until(lambda: "there is no folder" in registry.readiness().failed.get(str(bundles), ""))
    assert registry.readiness().models == ("alpha", "beta")
    bundles.with_name("elsewhere").rename(bundles)
    until(lambda: registry.readiness().failed == {})


def test_folder_whose_disk_is_gone_removes_nothing(bundles: Path, open_registry: Open) -> None:
    link, memory = bundles.with_name("link"), Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == bundles.stat().st_dev:
        pytest.skip("there is no second file system to try it on")
    link.symlink_to(bundles)
    registry = open_registry(link)
    with tempfile.TemporaryDirectory(dir=memory) as empty:
        (bundles / ".new").symlink_to(empty)
        (bundles / ".new").rename(link)
        until(lambda: "is its disk mounted?" in registry.readiness().failed.get(str(link), ""))
        assert registry.readiness().models == ("alpha", "beta")


def test_service_is_not_ready_while_its_folder_is_empty(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    for name in ("alpha", "beta"):
        (bundles / name).rename(bundles / f".{name}")
    until(lambda: not registry.readiness().ready)
    assert registry.readiness().reason == f"there is no bundle in {bundles}"
    with pytest.raises(NotReady):
        registry.get(UNSET)
    (bundles / ".beta").rename(bundles / "beta")
    until(lambda: registry.readiness().ready)
    assert registry.get(UNSET).name == "beta"


def test_counters_of_a_model_never_fall(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    old = registry.borrow("alpha")
    cached_tokens(old.engine)
    until(lambda: registry.stats()["alpha"].rows == 41)
    kept = registry.stats()["alpha"].cache_bytes
    put(bundles, "alpha", peak=5.0)
    until(lambda: registry.get("alpha") is not old)
    cached_tokens(registry.get("alpha").engine)
    until(lambda: registry.stats()["alpha"].rows == 82)
    assert registry.stats()["alpha"].cache_bytes == 2 * kept
    registry.give_back(old)
    until(lambda: registry.stats()["alpha"].cache_bytes == kept)
    assert registry.stats()["alpha"].rows == 82


def test_replaced_engine_leaves_nothing_behind(bundles: Path, open_registry: Open, no_collection: None) -> None:
    registry = open_registry(bundles)
    threads = set(threading.enumerate())
    for peak in (5.0, 6.0, 7.0):
        old = registry.get("alpha")
        cached_tokens(old.engine)
        runner, old_hash = weakref.ref(old.bundle.runner), old.bundle.hash
        put(bundles, "alpha", peak=peak)
        until(lambda: registry.get("alpha").bundle.hash != old_hash)  # noqa: B023 (called in this round)
        del old
        until(lambda: runner() is None)  # noqa: B023
    until(lambda: len(set(threading.enumerate()) - threads) <= 1)  # the thread of the one that is served
    assert registry.stats()["alpha"].cache_bytes == 0


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Let memory be freed by references alone: cycles would keep several engines until they are looked for."""
    gc.disable()
    yield
    gc.enable()


def test_unloaded_model_stays_away_until_it_is_loaded(bundles: Path, open_registry: Open) -> None:
    registry = open_registry(bundles)
    registry.wishes.change(lambda wishes: wishes.with_unload("alpha"))
    until(lambda: registry.readiness().models == ("beta",))
    put(bundles, "alpha", peak=5.0)
    put(bundles, "gamma")
    until(lambda: "gamma" in registry.readiness().models)
    with pytest.raises(UnknownModel, match="'alpha' was unloaded by an admin"):
        registry.get("alpha")
    wishes = registry.wishes.change(lambda wishes: wishes.with_load("alpha"))
    until(lambda: registry.wishes.reports()[0].wishes == wishes.number)
    assert registry.readiness().models == ("alpha", "beta", "gamma")


def put(bundles: Path, name: str, **changes: float) -> None:
    """Put a new bundle into the folder, in place of one that is there."""
    replace(bundles / name, write_tiny_bundle(bundles / ".new" / name, **changes))  # type: ignore[arg-type]


def replace(old: Path, new: Path) -> None:
    """Replace a folder by renaming, as an export does."""
    if old.exists():
        old.rename(old.with_name(f"{old.name}.old"))
    new.rename(old)
    shutil.rmtree(old.with_name(f"{old.name}.old"), ignore_errors=True)


def cached_tokens(engine: Engine) -> int:
    """Generate from a prompt of 40 tokens and return its number of cached tokens."""
    generation = engine.generate(GenerateCall([2] * 40, 1, time.monotonic() + 10), engine.reserve())
    generation.wait()
    return generation.cached_tokens


def test_several_folders_are_followed_and_a_name_belongs_to_the_first(
    bundles: Path, tmp_path: Path, open_registry: Open
) -> None:
    own, later = tmp_path / "own", tmp_path / "later"
    write_tiny_bundle(own / "beta", decay=0.1)
    registry = open_registry((own, bundles, later))
    assert registry.readiness().models == ("alpha", "beta")
    assert registry.get("beta").bundle.hash == read_manifest(own / "beta")[1]
    write_tiny_bundle(later / "gamma")
    until(lambda: registry.readiness().models == ("alpha", "beta", "gamma"))
    shutil.rmtree(own / "beta")  # now the one that it hid is served
    hidden = read_manifest(bundles / "beta")[1]
    until(lambda: registry.get("beta").bundle.hash == hidden)
    later.rename(tmp_path / "elsewhere")
    until(lambda: "there is no folder" in str(registry.readiness().failed))
    assert registry.readiness().models == ("alpha", "beta", "gamma")
