"""Test the loaded bundles, the default model, and the reports of bundles that cannot be loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import UNSET

from meari.errors import NotReady, UnknownModel
from meari.runtime.bundle import open_bundle
from meari.runtime.engine import Engine, GenerateCall
from meari.runtime.engine.cache import CacheRoom, PrefixCache
from meari.service.service import Registry
from meari.service.settings import Settings
from meari.service.workers import ReadyMarks
from tests.patience import PATIENCE
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

    def make(bundles: Path, **settings: str) -> Registry:
        registry = Registry(Settings(bundles=bundles, workers=1, **settings), ReadyMarks(None, 1))  # type: ignore[arg-type]
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


def cached_tokens(engine: Engine) -> int:
    """Generate from a prompt of 40 tokens and return its number of cached tokens."""
    generation = engine.generate(GenerateCall([2] * 40, 1, time.monotonic() + 10), engine.reserve())
    generation.wait()
    return generation.cached_tokens
