"""Configuration of all tests."""

import os
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime before meari can set this
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as CPUs: torch's threads would wait for each other

TESTS: Final = Path(__file__).parent
# Excluded from `make quick`: tests that train for long, measure, start a process for each of
# many cases, or need a browser, Prometheus or an image.
SLOW: Final = (
    "api/test_examples.py",
    "api/test_training.py",
    "benchmarks/serving",
    "benchmarks/training",
    "bulk/test_inputs.py",
    "bulk/test_resume.py",
    "bulk/test_served.py",
    "claims",
    "cli/test_completion.py",
    "cli/test_examples.py",
    "cli/test_search.py",
    "cli/test_train.py",
    "container",
    "deploy",
    "drills",
    "examples",
    "export/test_train_and_serve.py",
    "importer/test_import.py",
    "loadtests",
    "models/search",
    "models/training/test_grammar.py",
    "models/training/test_hosts.py",
    "models/training/test_reservoir_training.py",
    "models/training/test_workers.py",
    "service/openai/test_harness.py",
    "service/test_replacement.py",
    "service/test_reload.py",
    "service/web",
    "test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make quick` excludes, and put their files first, so that all processes end together."""
    slow = {TESTS / path for path in SLOW}
    for item in items:
        if slow.intersection([item.path, *item.path.parents]):
            item.add_marker(pytest.mark.slow)
    num_tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, -num_tests[item.path], str(item.path)))
