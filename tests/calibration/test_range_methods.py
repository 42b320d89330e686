"""Ranges from a histogram, against ones from the values themselves."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxquant.calibration.histogram import Histogram
from onnxquant.calibration.range_errors import divergences
from onnxquant.calibration.range_methods import RANGE_METHODS, find_range
from onnxquant.quantizers.uniform import UniformQuantizer

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(40_000)
TENSORS = {
    "normal": NORMAL,
    "relu": np.maximum(NORMAL, 0),
    "silu": 2 * NORMAL / (1 + np.exp(-2 * NORMAL)),
    "away from 0": 3 + NORMAL / 2,
    "negative": -np.exp(NORMAL),
    "uniform": RNG.uniform(-1, 3, 40_000),
    "relu6": np.clip(5 * NORMAL, 0, 6),
    "outliers": np.append(NORMAL[:39_980], RNG.uniform(-40, 60, 20)),
    "two values": np.where(NORMAL > 0, 2.0, -1.0),
}
METHOD = pytest.mark.parametrize("method", RANGE_METHODS)
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False])
BITS = pytest.mark.parametrize("bits", [2, 4, 8])


def histogram(values, samples=1):
    rows = np.asarray(values, np.float32).reshape(samples, -1)
    seen = Histogram()
    with np.errstate(over="ignore"):
        seen.update(rows.min(axis=1), rows.max(axis=1), rows.mean(axis=1), rows)
    return seen


def error(values, low, high, bits, symmetric):
    """Mean squared error of what a runtime computes with."""
    values = np.asarray(values, np.float32)
    quantizer = UniformQuantizer.from_range(np.array(low), np.array(high), bits=bits, symmetric=symmetric)
    return np.mean((quantizer.fake_quantize(values).astype(np.float64) - values) ** 2)


@METHOD
@SYMMETRIC
@settings(max_examples=40, deadline=None)
@given(
    values=arrays(np.float32, 9, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    bits=st.integers(2, 8),
)
def test_any_tensor_gets_a_range_that_holds_0_and_makes_a_quantizer(method, symmetric, values, bits):
    assume(np.abs(values).max() < 1e38)  # from there on high - low is no float32
    low, high = find_range(histogram(values), method, bits=bits, symmetric=symmetric)
    assert low <= 0 <= high
    assert UniformQuantizer.from_range(np.array(low), np.array(high), bits=bits, symmetric=symmetric)


@METHOD
@SYMMETRIC
@pytest.mark.parametrize("value", [0.0, 5.0, -1e-45, 1e38])
def test_a_constant_is_covered(method, symmetric, value):
    value = float(np.float32(value))
    found = find_range(histogram([value]), method, bits=8, symmetric=symmetric)
    assert found == (min(value, 0), max(value, 0))


@METHOD
@SYMMETRIC
def test_a_value_that_dwarfs_the_others_leaves_a_finite_range(method, symmetric):
    values = np.append(NORMAL[:1000], 1e30)
    low, high = find_range(histogram(values), method, bits=8, symmetric=symmetric)
    assert error(values, low, high, 8, symmetric) <= 1.01 * error(values, values.min(), 1e30, 8, symmetric)


@METHOD
@SYMMETRIC
@pytest.mark.parametrize("scale", [1e-30, 2.0**10, 1e20])
def test_the_range_grows_with_the_values(method, symmetric, scale):
    found, scaled = (
        find_range(histogram(values), method, bits=8, symmetric=symmetric) for values in (NORMAL, NORMAL * scale)
    )
    assert scaled == pytest.approx(np.multiply(found, scale), rel=0.04)  # the bins lie elsewhere


def test_minmax_covers_all_and_the_moving_average_what_samples_have_on_average():
    samples = np.stack([NORMAL[:100], 3 * NORMAL[100:200], NORMAL[200:300] + 1]).astype(np.float32)
    seen = histogram(samples, 3)
    assert find_range(seen, "minmax", bits=8, symmetric=False) == (samples.min(), samples.max())
    average = samples.min(axis=1).mean(), samples.max(axis=1).mean()
    assert find_range(seen, "moving_average", bits=8, symmetric=False) == pytest.approx(average)


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 100])
def test_percentiles_are_those_of_the_values_to_within_a_bin(tensor, percentile):
    values = TENSORS[tensor].astype(np.float32)
    seen = histogram(values)
    low, high = find_range(seen, "percentile", bits=8, symmetric=False, percentile=percentile)
    tail = (100 - percentile) / 2
    # The value before and the one after: a histogram can't tell where between them the percentile is.
    below = min(np.percentile(values, tail, method="lower"), 0), min(np.percentile(values, tail, method="higher"), 0)
    above = (
        max(np.percentile(values, 100 - tail, method="lower"), 0),
        max(np.percentile(values, 100 - tail, method="higher"), 0),
    )
    width = 2.0**seen.exponent
    assert below[0] - width <= low <= below[1] + width
    assert above[0] - width <= high <= above[1] + width


@BITS
@SYMMETRIC
@pytest.mark.parametrize("tensor", TENSORS)
def test_no_range_has_a_smaller_error_than_that_of_mse(tensor, bits, symmetric):
    values = TENSORS[tensor]
    found = error(values, *find_range(histogram(values), "mse", bits=bits, symmetric=symmetric), bits, symmetric)
    shares = np.linspace(0, 1, 41)
    lows, highs = (shares * end for end in (min(values.min(), 0), max(values.max(), 0)))
    if symmetric:
        grid = [(-high, high) for high in np.maximum(-values.min(), values.max()) * shares[1:]]
    else:
        grid = [(low, high) for low in np.unique(lows) for high in np.unique(highs) if high > low]
    fewer = values[:: len(values) // 4000]  # the grid is found on a part and judged on all
    best = min(grid, key=lambda ends: error(fewer, *ends, bits, symmetric))
    assert found <= 1.03 * error(values, *best, bits, symmetric)


@SYMMETRIC
@pytest.mark.parametrize("tensor", ["uniform", "relu6"])
def test_entropy_keeps_all_of_a_tensor_that_fills_its_range(tensor, symmetric):
    values = TENSORS[tensor].astype(np.float32)
    low, high = find_range(histogram(values), "entropy", bits=8, symmetric=symmetric)
    assert high == pytest.approx(values.max(), rel=0.02)
    assert low == pytest.approx(-high if symmetric else values.min())


@SYMMETRIC
def test_entropy_clips_outliers(symmetric):
    low, high = find_range(histogram(TENSORS["outliers"]), "entropy", bits=4, symmetric=symmetric)
    assert 2 < high < 8
    assert -8 < low < -2


def test_entropy_cuts_only_the_end_that_reaches_further():
    values = np.append(TENSORS["silu"], [100.0, 120.0])
    low, high = find_range(histogram(values), "entropy", bits=4, symmetric=False)
    assert low == pytest.approx(values.min())
    assert high < 20


def test_entropy_does_not_mind_how_often_a_value_is_exactly_0():
    few, many = (
        find_range(histogram(np.append(np.abs(NORMAL), np.zeros(count))), "entropy", bits=8, symmetric=False)
        for count in (10, 1_000_000)
    )
    assert few == many


@BITS
@SYMMETRIC
@pytest.mark.parametrize("tensor", ["normal", "silu", "outliers"])
def test_the_divergence_is_that_of_the_two_distributions(tensor, bits, symmetric):
    """Bin by bin, as the method is described, against the sums that it is computed from."""
    seen = histogram(TENSORS[tensor])
    counts = seen.counts.copy()
    counts[-seen.first] = min(counts[-seen.first], max(counts[-seen.first - 1], counts[-seen.first + 1]))
    codes = 2**bits - 1
    largest = max(-seen.minimum, seen.maximum)
    for share in (0.4, 0.7, 1.0):
        low, high = -share * largest, share * largest
        if not symmetric:
            low, high = max(low, seen.minimum), min(high, seen.maximum)
        ends = (np.linspace(low, high, codes + 1) - seen.edges[0]) / 2.0**seen.exponent
        ends = np.concatenate([np.floor(ends[:1]), np.rint(ends[1:-1]), np.floor(ends[-1:]) + 1])
        ends = ends.clip(0, len(counts)).astype(int)
        p, q = np.zeros(len(counts)), np.zeros(len(counts))
        p[ends[0] : ends[-1]] = counts[ends[0] : ends[-1]]
        p[ends[0]] += counts[: ends[0]].sum()
        p[ends[-1] - 1] += counts[ends[-1] :].sum()
        for begin, end in itertools.pairwise(ends):
            filled = np.flatnonzero(p[begin:end]) + begin
            if len(filled):
                q[filled] = counts[begin:end].sum() / len(filled)
        p, q = p / p.sum(), q / q.sum()
        at = p > 0
        with np.errstate(divide="ignore"):
            expected = np.sum(p[at] * np.log(p[at] / q[at]))
        assert np.isfinite(expected) or share < 1
        found = divergences(seen, np.array([low]), np.array([high]), codes)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_sample_of_the_values_gives_the_range_of_all():
    values = TENSORS["silu"]
    whole, part = histogram(values), histogram(values)
    part.counts = histogram(np.append(values[::10], [values.min(), values.max()])).counts
    for bits in (4, 8):
        one, other = (find_range(seen, "mse", bits=bits, symmetric=False) for seen in (whole, part))
        assert error(values, *other, bits, False) <= 1.1 * error(values, *one, bits, False)
