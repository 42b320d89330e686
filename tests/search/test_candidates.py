"""Candidates: the arithmetic is the quantizer's own, and the best ratio is found, alone or channel by channel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.search.candidates import best_ratio, fake_quantize

VALUES = arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=32))


@given(values=VALUES, bits=st.integers(2, 8), symmetric=st.booleans(), per_channel=st.booleans())
def test_fake_quantization_in_torch_is_that_of_numpy_to_the_bit(values, bits, symmetric, per_channel):
    axis = 0 if per_channel else None
    others = 1 if per_channel else None
    quantizer = UniformQuantizer.from_range(
        values.min(axis=others), values.max(axis=others), bits=bits, symmetric=symmetric, axis=axis
    )
    np.testing.assert_array_equal(
        fake_quantize(torch.from_numpy(values), quantizer, axis).numpy(), quantizer.fake_quantize(values)
    )


def test_a_shift_is_taken_off_and_added_again():
    quantizer = UniformQuantizer.from_range(np.array(-1.0), np.array(1.0), bits=8, symmetric=True)
    values = torch.linspace(4, 6, 100)
    assert (fake_quantize(values, quantizer, shift=5.0) - values).abs().max() < 1 / 127
    assert (fake_quantize(values, quantizer) - values).abs().max() > 3


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
