"""Test that sizes beyond the memory are refused with the setting's name, and that sizes that fit are accepted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from meari.bundle_format.names import Family
from meari.models.choices import Pattern, Readout
from meari.models.config import ModelConfig, RecurrentConfig, ReservoirConfig
from meari.models.errors import TrainingError
from meari.models.memory import _group_bytes, check_memory, memory_errors
from tests.models.training.tiny_runs import tiny_config

CPU = torch.device("cpu")
HUGE = 99_999_999_999
LSTM = RecurrentConfig(Family.LSTM, embedding_size=8, hidden_size=16)
ESN = ReservoirConfig(Family.ESN, units=64)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (replace(LSTM, hidden_size=HUGE), "hidden_size"),
        (replace(LSTM, num_layers=HUGE), "num_layers"),
        (replace(LSTM, layer_sizes=(HUGE, 4)), "layer_sizes"),
        (replace(LSTM, embedding_size=HUGE), "embedding_size"),
        (replace(LSTM, mogrifier_rounds=HUGE), "mogrifier_rounds"),
        (replace(ESN, units=HUGE), "units"),
        (replace(ESN, layers=HUGE), "layers"),
        (replace(ESN, pattern=Pattern.RANDOM, units=HUGE), "units"),
        (replace(ESN, embedding_size=HUGE), "embedding_size"),
        (replace(ESN, embedding_size=4, input_tokens=HUGE), "input_tokens"),
        (replace(ESN, features=64 * HUGE), "features"),
        (replace(ESN, features=10**7, readout=Readout.RIDGE), "features"),
        (replace(ESN, readout_rank=HUGE), "readout_rank"),
    ],
)
def test_setting_that_makes_the_model_too_large_is_reported(tmp_path: Path, model: ModelConfig, key: str) -> None:
    config = replace(tiny_config(tmp_path), model=model)
    with pytest.raises(
        TrainingError, match=rf"^model\.{key}: got .* needs at least .*iB of memory, expected at most .*iB"
    ):
        check_memory(config, CPU)


@pytest.mark.parametrize("changed", [{"batch_size": HUGE}, {"batch_size": 64, "chunk_length": HUGE}])
def test_setting_that_makes_a_step_too_large_is_reported(tmp_path: Path, changed: dict[str, Any]) -> None:
    config = tiny_config(tmp_path, **changed)
    key = list(changed)[-1]
    with pytest.raises(TrainingError, match=rf"^training\.{key}: got {HUGE},"):
        check_memory(config, CPU, vocabulary_size=100, chunk_length=config.training.chunk_length)


def test_memory_of_a_chunk_is_bounded_by_the_corpus(tmp_path: Path) -> None:
    check_memory(tiny_config(tmp_path, chunk_length=HUGE), CPU)


def test_large_vocabulary_is_reported_once_its_size_is_known(tmp_path: Path) -> None:
    config = replace(tiny_config(tmp_path), model=replace(LSTM, hidden_size=1024))
    with pytest.raises(TrainingError, match=r"^tokenizer\.vocabulary_size: got 1000000000"):
        check_memory(config, CPU, vocabulary_size=10**9)
    check_memory(config, CPU, vocabulary_size=10**4)


def test_lowest_limit_of_all_control_groups_applies(tmp_path: Path) -> None:
    for name, limit in (("", "max"), ("outer", "4096"), ("outer/inner", "8192"), ("memory/old", "2048")):
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ("memory.limit_in_bytes" if "memory" in name else "memory.max")).write_text(f"{limit}\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    assert _group_bytes(tmp_path / "groups", membership) == 4096
    membership.write_text("4:memory:/old\n1:cpu:/\n")
    assert _group_bytes(tmp_path / "groups", membership) == 2048
    membership.write_text("")
    assert _group_bytes(tmp_path / "groups", membership) is None


def test_failed_allocation_is_reported_in_one_line() -> None:
    with pytest.raises(TrainingError, match=r"^memory ran out .* lower training\.batch_size"), memory_errors():
        torch.empty(1 << 58, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="unrelated"), memory_errors():
        raise RuntimeError("unrelated")
