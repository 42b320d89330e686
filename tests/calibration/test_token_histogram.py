"""A streaming histogram by token is the one of all values at once, and outliers and scales follow from it."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxquant.calibration.collector import collect
from onnxquant.calibration.dataset import FeedDataset, input_specs
from onnxquant.calibration.token_histogram import TokenHistogram
from onnxquant.quantizers.per_token import PerTokenQuantizer
from tests.graphs import parse

ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)  # denormals and 1e38 too
SAMPLES = st.lists(arrays(np.float32, (3, 5), elements=ANY_FLOAT), min_size=1, max_size=6)
RNG = np.random.default_rng(0)


def histogram(*batches):
    observer = TokenHistogram()
    for batch in batches:
        observer.update(np.asarray(batch, np.float32))
    return observer


def observe(model, data, batch_size):
    observer = TokenHistogram()
    dataset = FeedDataset("data", [{"x": data}], input_specs(model))
    collect(model, {("y", TokenHistogram): observer}, dataset, batch_size=batch_size)
    return observer


@settings(deadline=None)
@given(data=st.data(), samples=SAMPLES, bound=st.integers(0, 5))
def test_neither_batches_nor_the_order_of_the_samples_make_a_difference(data, samples, bound):
    shuffled = data.draw(st.permutations(samples))
    cut = [part for part in (shuffled[:bound], shuffled[bound:]) if part]
    assert histogram(*cut).state() == histogram(samples).state()


@settings(deadline=None)
@given(samples=SAMPLES)
def test_every_value_is_in_its_bin(samples):
    seen, magnitudes = histogram(*([sample] for sample in samples)), np.abs(samples)
    assert (np.diff(seen.edges) >= 0).all()
    assert seen.edges[-2] <= magnitudes.max() <= seen.edges[-1]
    at = np.searchsorted(seen.edges[:-1], magnitudes, side="right") - 1
    for token, counts in enumerate(seen.counts):
        # bins that begin at 0 too stand before the last of them
        assert counts.sum() == len(samples) * 5
        filled = np.bincount(at[:, token].ravel(), minlength=TokenHistogram.BINS)
        assert counts[seen.edges[:-1] > 0].tolist() == filled[seen.edges[:-1] > 0].tolist()


def test_a_bin_is_a_32nd_of_an_octave_and_they_reach_ten_octaves_down():
    seen = histogram(RNG.standard_normal((2, 3, 64)))
    assert (np.diff(seen.edges)[1:] / seen.edges[1:-1]).max() <= 1 / 32
    assert seen.edges[1] <= seen.edges[-1] / 1000


@settings(deadline=None)
@given(samples=SAMPLES)
def test_what_was_seen_comes_back_from_json_as_it_was(samples):
    seen = histogram(samples)
    kept = TokenHistogram.from_state(json.loads(json.dumps(seen.state())))
    assert kept.counts.dtype == seen.counts.dtype
    assert kept.state() == seen.state()
    kept.update(np.ones((1, 3, 5), np.float32))
    seen.update(np.ones((1, 3, 5), np.float32))
    assert kept.state() == seen.state()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"counts": [[1, 2]]}, "counts that are not 321 numbers"),
        ({"counts": [[-1] * 320 + [5]]}, "counts that are not 321 numbers"),
        ({"counts": [[0] * 321]}, "counts that are not 321 numbers"),
        ({"end": 0}, "end that no magnitude is below"),
        ({"end": 2**20}, "end that no magnitude is below"),
        ({"end": 0.5}, "end that does not fit"),
    ],
)
def test_a_state_that_it_can_not_have_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        TokenHistogram.from_state({**histogram(np.ones((1, 2, 3))).state(), **change})


@pytest.mark.parametrize("size", [1, 2, 5])
def test_windows_on_the_batch_axis_have_the_same_tokens(size):
    text = "g (float[N, 6, 4] x) => (float[M, 3, 4] y) { y = Reshape (x, windows) }"
    data = RNG.standard_normal((5, 6, 4)).astype(np.float32)
    model = parse(text, windows=np.array([-1, 3, 4]))
    assert observe(model, data, size).state() == histogram(data.reshape(-1, 3, 4)).state()


def test_samples_that_fill_up_a_fixed_batch_do_not_count():
    model = parse("g (float[4, 6, 4] x) => (float[4, 6, 4] y) { y = Identity (x) }")
    data = RNG.standard_normal((5, 6, 4)).astype(np.float32)
    assert observe(model, data, 4).state() == histogram(data).state()


def test_images_have_a_token_at_every_place_and_a_vector_is_one():
    assert len(histogram(np.ones((2, 3, 4, 8))).counts) == 12
    assert len(histogram(np.ones((2, 8))).counts) == 1


def test_tokens_may_come_later():
    assert histogram(np.ones((1, 2, 4)), np.ones((1, 3, 4))).counts.sum(axis=1).tolist() == [8, 8, 4]


def test_its_size_does_not_depend_on_the_samples():
    tokens = RNG.standard_normal((4, 197, 384))
    assert histogram(tokens).counts.nbytes == histogram(*[tokens] * 3).counts.nbytes < 600e3


@given(arrays(np.float32, (2, 3, 40), elements=ANY_FLOAT), st.sampled_from([0.005, 0.05, 0.3]))
def test_no_smaller_edge_leaves_so_few_above_it(values, share):
    seen, magnitudes = histogram(values), np.abs(values)
    threshold = seen.threshold(share)
    if threshold is None:
        assert (magnitudes >= seen.edges[-2]).mean() > share
    else:
        assert (magnitudes >= np.float32(threshold)).mean() <= share
        below = seen.edges[np.searchsorted(seen.edges, threshold) - 1]
        assert below == 0 or (magnitudes >= below).mean() > share
        assert seen.reaches(threshold)


def test_where_all_values_are_equal_none_is_an_outlier():
    for value in (0.0, 1e-45, 3.0, 3e38):
        assert histogram(np.full((4, 2, 8), value)).threshold(0.005) is None


def test_a_threshold_above_all_values_is_not_reached():
    seen = histogram(np.full((1, 2, 8), -3.0))
    assert seen.reaches(2.9)
    assert not seen.reaches(5.0)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("threshold", [None, 2.7])
def test_no_other_scale_of_a_token_has_a_smaller_squared_error(bits, threshold):
    values = (np.random.default_rng(0).standard_normal((128, 6, 64)) * [[0.2], [0.5], [1], [1], [2], [3]]).astype(
        np.float32
    )
    scales = histogram(values).scales(bits, threshold)

    def errors(candidate):
        quantizer = PerTokenQuantizer(bits, candidate, threshold)
        return np.square(quantizer.fake_quantize(values) - values).sum(axis=(0, 2))

    tried = [errors(scales * np.float32(factor)) for factor in np.geomspace(0.25, 4, 200)]
    assert (errors(scales) <= 1.1 * np.min(tried, axis=0)).all()  # a histogram is seen


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 3e38])
def test_any_tensor_gets_scales_above_zero(value):
    values = np.full((2, 3, 8), value, np.float32)
    values[:, 0] = 0
    for bits, threshold in itertools.product((2, 8), (None, 1.0)):
        scales = histogram(values).scales(bits, threshold)
        assert np.isfinite(PerTokenQuantizer(bits, scales, threshold).fake_quantize(values)).all()
