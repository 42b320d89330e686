"""Rounding that keeps each kernel's sum."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxquant.quantizers.rounding import sum_preserving

ROWS = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(-100, 100, width=32)
)


@given(ROWS)
def test_the_sum_of_every_row_is_off_by_half_a_step_at_most(scaled):
    rounded = sum_preserving(scaled, 1.0, (-128, 127))
    assert (np.abs((rounded - scaled).sum(axis=1)) <= 0.5 + 1e-9).all()


@given(ROWS)
def test_every_code_is_one_of_the_two_neighbours(scaled):
    rounded = sum_preserving(scaled, 1.0, (-128, 127))
    assert (np.abs(rounded - scaled) <= 1 + 1e-9).all()


@given(ROWS)
def test_codes_never_leave_the_range(scaled):
    rounded = sum_preserving(scaled, 1.0, (-8, 7))
    assert rounded.min() >= -8
    assert rounded.max() <= 7


def test_the_roundings_nearest_to_a_tie_are_flipped():
    scaled = np.array([[0.4, 0.3, 0.1, 0.2]])  # nearest is all zero, one short
    np.testing.assert_array_equal(sum_preserving(scaled, 1.0, (-8, 7)), [[1, 0, 0, 0]])


def test_a_row_whose_sum_is_kept_by_nearest_is_left_alone():
    scaled = np.array([[0.4, -0.4, 2.0]])
    np.testing.assert_array_equal(sum_preserving(scaled, 1.0, (-8, 7)), [[0, 0, 2]])


@given(ROWS, st.integers(0, 99))
def test_with_means_the_error_that_every_pixel_shares_shrinks(scaled, seed):
    means = np.random.default_rng(seed).standard_normal(scaled.shape)
    rounded = sum_preserving(scaled, 0.1, (-128, 127), means)
    nearest = np.clip(np.rint(scaled), -128, 127)
    shared = np.abs((means * (rounded - scaled)).sum(axis=1))
    assert (shared <= np.abs((means * (nearest - scaled)).sum(axis=1)) + 1e-9).all()
