"""A streaming histogram is the one of all values at once."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxquant.calibration.histogram import Histogram

ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)  # denormals and 1e38 too
SAMPLES = st.lists(arrays(np.float32, 7, elements=ANY_FLOAT), min_size=1, max_size=6)


def take_in(observer, samples):
    rows = np.stack(samples)
    with np.errstate(over="ignore"):
        observer.update(rows.min(axis=1), rows.max(axis=1), rows.mean(axis=1), rows)


def histogram(batches):
    observer = Histogram()
    for samples in batches:
        take_in(observer, samples)
    return observer


def cut(samples, bounds):
    """The samples in batches that end at `bounds`."""
    ends = sorted({*(bound % len(samples) for bound in bounds), 0, len(samples)})
    return [samples[a:b] for a, b in itertools.pairwise(ends)]


@settings(deadline=None)
@given(samples=SAMPLES, bounds=st.lists(st.integers(0, 5), max_size=3))
def test_batches_make_no_difference(samples, bounds):
    assert histogram(cut(samples, bounds)).state() == histogram([samples]).state()


@settings(deadline=None)
@given(data=st.data(), samples=SAMPLES)
def test_neither_does_the_order_of_the_samples(data, samples):
    shuffled = histogram([[sample] for sample in data.draw(st.permutations(samples))]).state()
    straight = histogram([[sample] for sample in samples]).state()
    for name in ("low_total", "high_total"):
        assert shuffled.pop(name) == pytest.approx(straight.pop(name), rel=1e-12, abs=1e25)
    assert shuffled == straight


@settings(deadline=None)
@given(samples=SAMPLES)
def test_every_value_is_in_its_bin(samples):
    seen, values = histogram([[sample] for sample in samples]), np.concatenate(samples).astype(np.float64)
    assert (seen.minimum, seen.maximum) == (values.min(), values.max())
    assert len(seen.counts) <= Histogram.BINS
    assert seen.edges[0] <= seen.minimum < seen.edges[1]
    assert seen.edges[-2] <= seen.maximum < seen.edges[-1]
    at = np.searchsorted(seen.edges, values, side="right") - 1
    assert seen.counts.tolist() == np.bincount(at, minlength=len(seen.counts)).tolist()


@given(low=st.floats(-100, 100), width=st.floats(1, 1e6), count=st.integers(1, 5))
def test_a_range_has_at_least_half_of_the_bins(low, width, count):
    values = np.linspace(low, low + width, 7).astype(np.float32)
    assert len(histogram([[values]] * count).counts) > Histogram.BINS / 2


@given(samples=SAMPLES)
def test_the_means_of_the_ends_are_those_of_the_samples(samples):
    seen = histogram([samples])
    assert seen.samples == len(samples)
    assert seen.low_total / seen.samples == pytest.approx(np.mean([s.min() for s in samples], dtype=np.float64))
    assert seen.high_total / seen.samples == pytest.approx(np.mean([s.max() for s in samples], dtype=np.float64))


def test_the_smallest_and_largest_value_need_not_be_among_those_counted():
    seen = Histogram()
    seen.update(np.array([-2.0]), np.array([8.0]), np.array([0.0]), np.array([[1.0, 1.5]]))
    assert (seen.minimum, seen.maximum) == (-2, 8)
    assert seen.counts.sum() == 2
    assert (seen.edges[0], seen.edges[-2]) == (-2, 8)


@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -1e-45, 3e38])
def test_a_constant_has_one_bin(value):
    assert histogram([[np.full(7, value, np.float32)]] * 3).counts.tolist() == [21]
