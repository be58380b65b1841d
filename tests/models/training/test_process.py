"""Test that settings of the whole process are restored when a training ends."""

from __future__ import annotations

import numpy as np
import torch

from meari.models.training.process import fast_torch


def halved_smallest_normal() -> float:
    """Return half of the smallest normal float64: a denormal, or zero if denormals are flushed."""
    return float(np.array([np.finfo(np.float64).tiny])[0] / np.array([2.0])[0])


def test_denormals_are_flushed_only_during_training() -> None:
    before = torch.get_num_threads()
    with fast_torch(threads=before + 1):
        assert torch.get_num_threads() == before + 1
        assert halved_smallest_normal() == 0.0
    assert halved_smallest_normal() > 0.0
    assert torch.get_num_threads() == before
