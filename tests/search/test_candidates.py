"""Candidates: the best ratio is found, alone or channel by channel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxquant.search.candidates import best_ratio


@given(wanted=st.lists(st.floats(0.05, 1.15), min_size=1, max_size=4))
def test_every_channel_gets_its_own_best_ratio(wanted):
    goal = np.array(wanted)
    found, error = best_ratio(
        lambda ratio: ratio, lambda ratio: torch.from_numpy(np.abs(ratio - goal)), len(goal), 100, (0.01, 1.2)
    )
    assert np.abs(found - goal).max() < 0.005, "as close as 100 candidates would come, and closer"
    assert error == pytest.approx(np.abs(found - goal).sum())


def test_one_ratio_serves_all_where_costs_cannot_be_told_apart():
    goal = np.array([0.4, 0.6])
    found, _ = best_ratio(
        lambda ratio: ratio, lambda ratio: torch.tensor([float(np.square(ratio - goal).sum())]), 1, 100, (0.01, 1.2)
    )
    assert found == pytest.approx([0.5], abs=0.005)
