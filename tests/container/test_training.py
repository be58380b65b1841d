"""Test the image that trains: from a text to a bundle that the service's image serves."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.container.client import get, post
from tests.container.docker import Docker

pytestmark = [pytest.mark.container, pytest.mark.timeout(600)]

TEXT = "the cat sat on the mat and the dog ran to the cat. " * 200
RIGHTS = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
SETTINGS = ("--minutes", "0.1", "--set", "training.threads=1", "--set", "training.steps=20")


def test_a_text_becomes_a_bundle_that_the_service_serves(
    docker: Docker, training_image: str, start: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "my-text.txt").write_text(TEXT)
    tmp_path.chmod(0o755)
    owner = ("--user", str(os.getuid()))
    mounted = ("--rm", *owner, *RIGHTS, "--volume", f"{tmp_path}:/work")
    told = docker.run("run", *mounted, training_image, "train", "my-text.txt", *SETTINGS, timeout=120)
    assert "bundles/my-text" in told.splitlines()[-2]
    service = docker.address(start("--volume", f"{tmp_path / 'bundles'}:/bundles:ro"))
    assert "my-text" in {model["name"] for model in get(service, "/models")["models"]}
    scored = post(service, "/score", {"model": "my-text", "texts": ["the cat", "xqz vkj"]})
    likely, unlikely = (result["logprob"] for result in scored["results"])
    assert unlikely < likely < 0


def test_image_trains_as_a_numeric_non_root_user_and_has_no_health_to_ask(docker: Docker, training_image: str) -> None:
    config = docker.inspect(training_image)["Config"]
    assert int(config["User"].partition(":")[0]) > 0
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert "--minutes" in docker.run("run", "--rm", training_image)


def test_bytecode_of_all_that_trains_and_exports_is_kept(docker: Docker, training_image: str) -> None:
    code = (
        "import os, sys, meari.export.bundle, meari.models.planning.run, meari.models.training.run\n"
        "paths = [getattr(module, '__cached__', None) for module in sys.modules.values()]\n"
        "print(len(paths), [path for path in paths if isinstance(path, str) and not os.path.exists(path)])"
    )
    number, missing = docker.run("run", "--rm", "--entrypoint", "python", training_image, "-c", code).split(" ", 1)
    assert int(number) > 1000
    assert missing.strip() == "[]"
