"""What observers see of a model's tensors, in ONNX Runtime, is what they are told to look at."""

import numpy as np
import onnx
import pytest

from onnxquant.calibration.collector import collect
from onnxquant.calibration.dataset import FeedDataset, input_specs
from onnxquant.calibration.histogram import Histogram
from onnxquant.calibration.observers import ChannelMean, ChannelMinMax, LastAxisMinMax, MinMax
from onnxquant.errors import OnnxquantError
from tests.graphs import parse

KINDS = [MinMax, ChannelMean, ChannelMinMax, LastAxisMinMax, Histogram]


def copying(*shape, opset=17, batch="N"):
    """A model that hands its input on as `y`."""
    axes = ", ".join(map(str, (batch, *shape)))
    return parse(f"g (float[{axes}] x) => (float[{axes}] y) {{ y = Identity (x) }}", opset)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def observe(model, kind, data, tensor="y", batch_size=32):
    observer = kind()
    collect(
        model,
        {(tensor, kind): observer},
        FeedDataset("data", [{"x": data}], input_specs(model)),
        batch_size=batch_size,
    )
    return observer


def but_for_rounding(state):
    """The state, to be compared with that of other batches, whose means ONNX Runtime may sum in another order."""
    return state | ({"total": pytest.approx(np.array(state["total"]), abs=1e-5)} if "total" in state else {})


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("shape", [(3, 4, 5), (6, 3), (3,)])
def test_ends_and_means_are_those_of_the_data(opset, shape):
    data, model = normal(7, *shape), copying(*shape, opset=opset)
    whole = observe(model, MinMax, data)
    assert (whole.minimum, whole.maximum) == (data.min(), data.max())
    for kind, axis in ((ChannelMinMax, 1), (LastAxisMinMax, -1)):
        seen, rows = observe(model, kind, data), np.moveaxis(data, axis, 0).reshape(data.shape[axis], -1)
        assert seen.minimum.tolist() == rows.min(axis=1).tolist()
        assert seen.maximum.tolist() == rows.max(axis=1).tolist()
        np.testing.assert_allclose(seen.mean, rows.mean(axis=1), rtol=1e-5, atol=1e-6)
        assert seen.count == 7
    seen = observe(model, Histogram, data)
    assert (seen.minimum, seen.maximum, seen.samples) == (data.min(), data.max(), 7)
    assert seen.low_total == pytest.approx(sum(float(sample.min()) for sample in data))
    assert seen.counts.sum() == data.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 50, 50)])
def test_the_batch_size_makes_no_difference(kind, shape):
    data, model = normal(5, *shape), copying(*shape)
    one, *others = (observe(model, kind, data, batch_size=size).state() for size in (1, 2, 5))
    assert others == [but_for_rounding(one)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_fill_up_a_fixed_batch_do_not_count(kind):
    data = normal(5, 3, 4, 5)
    fixed, free = observe(copying(3, 4, 5, batch=4), kind, data), observe(copying(3, 4, 5), kind, data, batch_size=1)
    for name, value in vars(free).items():
        np.testing.assert_allclose(getattr(fixed, name), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [LastAxisMinMax, Histogram])
def test_windows_on_the_batch_axis_belong_to_their_sample(kind):
    model = parse(
        "g (float[N, 6, 4] x) => (float[M, 3, 4] y) { y = Reshape (x, windows) }", windows=np.array([-1, 3, 4])
    )
    data = normal(5, 6, 4)
    states = [observe(model, kind, data, batch_size=size).state() for size in (1, 2, 5)]
    assert states == [but_for_rounding(observe(model, kind, data, "x").state())] * 3


@pytest.mark.parametrize("kind", [MinMax, ChannelMinMax, LastAxisMinMax, Histogram])
def test_a_tensor_that_cannot_be_divided_among_the_samples_is_observed_whole(kind):
    model = parse(
        "g (float[N, 3] x) => (float[1, 3] y) { y = ReduceMax <axes = [0], keepdims = 1> (x) }",
    )
    data = normal(2, 3)
    seen = observe(model, kind, data)
    assert np.max(seen.maximum) == data.max()
    assert np.min(seen.minimum) == data.max(axis=0).min()


def test_of_a_large_tensor_a_few_thousand_values_are_counted_and_the_ends_of_all():
    data = normal(3, 5, 40, 41)
    data[1, 4, 39, 40] = 100
    seen = observe(copying(5, 40, 41), Histogram, data)
    assert seen.counts.sum() == 3 * Histogram.VALUES
    assert (seen.minimum, seen.maximum) == (data.min(), 100)


@pytest.mark.parametrize("shape", [(64, 32, 32), (256, 64), (3, 128, 128), (65536,)])
@pytest.mark.parametrize("axis", range(-1, 2))
def test_counted_values_come_from_everywhere_alike(shape, axis):
    """Each value is its place on one axis, so a place that is passed over or preferred would show."""
    axis = axis % len(shape)
    length = shape[axis]
    places = np.arange(length, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    seen = observe(copying(*shape), Histogram, np.broadcast_to(places, (1, *shape)).astype(np.float32))
    parts = min(length, 8)
    running = np.interp(np.linspace(0, length, parts + 1), seen.edges, np.concatenate([[0], seen.counts.cumsum()]))
    assert np.diff(running) == pytest.approx(Histogram.VALUES / parts, rel=0.15)


def test_tensors_and_observers_share_a_run():
    data, model = normal(4, 3, 4, 4), parse("g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) { y = Relu (x) }")
    wanted = {(tensor, kind): kind() for tensor in ("x", "y") for kind in KINDS}
    collect(model, wanted, FeedDataset("data", [{"x": data}], input_specs(model)), batch_size=4)
    for (tensor, kind), observer in wanted.items():
        assert observer.state() == observe(model, kind, data, tensor).state()


def test_the_model_may_have_functions_of_its_own():
    text = """<ir_version: 9, opset_import: ["": 18, "own": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = own.MinMax (x) }
        <opset_import: ["": 18], domain: "own"> MinMax (x) => (y) { y = Neg (x) }"""
    model, data = onnx.parser.parse_model(text), normal(3, 4)
    assert observe(model, MinMax, data).maximum == -data.min()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_value_that_is_no_number_is_named_with_its_sample(kind, size):
    model = parse("g (float[N, 2, 100, 100] x) => (float[N, 2, 100, 100] y) { y = Sqrt (x) }")
    data = np.abs(normal(5, 2, 100, 100))
    data[3, 1, 57, 31] = -1
    with pytest.raises(OnnxquantError, match=r"tensor y has NaN or infinite values on sample data\[3\]"):
        observe(model, kind, data, batch_size=size)
