"""Test that settings of the whole process are restored when a training ends."""

from __future__ import annotations

import numpy as np
import torch

from meari.models.training.process import fast_torch


def halved_smallest_normal() -> float:
    """Half of the smallest normal float64: denormal, or zero where those are flushed."""
    return float(np.array([np.finfo(np.float64).tiny])[0] / np.array([2.0])[0])


def test_denormals_are_flushed_within_and_kept_after() -> None:
    before = torch.get_num_threads()
    with fast_torch(threads=1):
        assert torch.get_num_threads() == 1
        assert halved_smallest_normal() == 0.0
    assert halved_smallest_normal() > 0.0
    assert torch.get_num_threads() == before
