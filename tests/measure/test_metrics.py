"""Metrics equal their formulas, in one go or batch by batch, and are defined where formulas are not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxquant.measure.metrics import Agreement, cosine, sqnr_db, top1_agreement

RNG = np.random.default_rng(0)
R = RNG.standard_normal((20, 7)).astype(np.float32)
T = R + RNG.standard_normal((20, 7)).astype(np.float32) / 10


def test_sqnr_is_signal_over_noise_in_db():
    r, t = R.astype(np.float64), T.astype(np.float64)
    assert sqnr_db(R, T) == pytest.approx(10 * np.log10((r**2).sum() / ((r - t) ** 2).sum()), rel=1e-12)
    assert sqnr_db([10.0], [9.0]) == pytest.approx(20)


def test_cosine_is_that_of_the_angle():
    assert cosine([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.5))
    assert cosine(R, -R) == pytest.approx(-1)
    assert cosine(R, 3 * R) == pytest.approx(1)


def test_top1_agreement_is_the_share_of_rows_with_the_same_winner():
    assert top1_agreement([[1, 2], [3, 0], [0, 1]], [[0, 5], [1, 0], [9, 1]]) == pytest.approx(2 / 3)
    assert top1_agreement(np.zeros((2, 3, 4)), np.zeros((2, 3, 4))) is None


@pytest.mark.parametrize(
    ("reference", "test", "db", "angle"),
    [
        ([1, 2], [1, 2], math.inf, 1),
        ([0, 0], [0, 0], math.inf, 1),
        ([0, 0], [0, 1], -math.inf, 0),
        ([1, 1], [0, 0], 0, 0),
    ],
)
def test_zeros_and_equality_have_defined_metrics(reference, test, db, angle):
    assert sqnr_db(reference, test) == db
    assert cosine(reference, test) == pytest.approx(angle)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_in_one_only_is_infinite_noise(broken):
    assert sqnr_db([1, 2, 3], [1, 2, broken]) == -math.inf
    assert sqnr_db([1, 2, broken], [1, 2, 3]) == -math.inf


def test_a_mask_of_infinities_in_both_counts_as_equal_but_nan_never_does():
    assert sqnr_db([10, -np.inf], [9, -np.inf]) == pytest.approx(20)
    assert sqnr_db([10, -np.inf], [9, np.inf]) == -math.inf
    assert sqnr_db([10, np.nan], [9, np.nan]) == -math.inf


def test_sums_are_float64_so_that_no_small_value_is_lost():
    reference = np.array([3e4, *[1e-3] * 100], np.float32)
    test = np.array([3e4, *[0] * 100], np.float32)
    assert sqnr_db(reference, test) == pytest.approx(10 * math.log10(9e8 / 1e-4), rel=1e-6)
    assert math.isfinite(sqnr_db(np.float32([3e38]), np.float32([1e38])))
    assert math.isfinite(sqnr_db(np.float16([6e4]), np.float16([5e4])))


@given(st.lists(st.integers(1, 19), max_size=4, unique=True))
def test_batches_add_up_to_the_whole(cuts):
    agreement = Agreement()
    for r, t in zip(np.split(R, sorted(cuts)), np.split(T, sorted(cuts)), strict=True):
        agreement.update(r, t)
    assert agreement.samples == 20
    assert agreement.sqnr_db == pytest.approx(sqnr_db(R, T))
    assert agreement.cosine == pytest.approx(cosine(R, T))
    assert agreement.top1_agreement == top1_agreement(R, T)


def test_the_arrays_are_left_as_they_were():
    reference, test = R.astype(np.float64), T.astype(np.float64)
    sqnr_db(reference, test)
    assert (reference == R).all()
    assert (test == T).all()


def test_arrays_of_different_shape_cannot_be_compared():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        sqnr_db([1, 2], [1, 2, 3])
