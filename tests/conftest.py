"""What holds for all tests."""

import os
from pathlib import Path
from typing import Final

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, and before the project does

TESTS: Final = Path(__file__).parent
# Tests that train for long, measure, load, or need a browser, a Prometheus or an image: `make quick` leaves them out.
SLOW: Final = (
    "benchmarks/serving",
    "benchmarks/training",
    "claims",
    "cli/test_completion.py",
    "cli/test_examples.py",
    "cli/test_search.py",
    "cli/test_train.py",
    "container",
    "deploy",
    "examples",
    "export/test_train_and_serve.py",
    "loadtests",
    "models/search",
    "models/training/test_grammar.py",
    "models/training/test_reservoir_training.py",
    "models/training/test_workers.py",
    "service/openai/test_harness.py",
    "service/web",
    "test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make quick` leaves out."""
    slow = {TESTS / place for place in SLOW}
    for item in items:
        if slow.intersection([item.path, *item.path.parents]):
            item.add_marker(pytest.mark.slow)
