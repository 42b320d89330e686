"""What an observer saw can be kept as JSON, exact to the bit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxquant.calibration.histogram import Histogram
from onnxquant.calibration.observers import (
    ChannelMean,
    ChannelMinMax,
    LastAxisMinMax,
    Log2Histogram,
    MinMax,
    Observer,
)

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
BATCHES = st.lists(arrays(np.float32, (3, 4, 2), elements=FLOATS), min_size=1, max_size=3)


def reduced(observer, batch):
    """What ONNX Runtime would give the observer of one batch."""
    if isinstance(observer, MinMax):
        return batch.min(), batch.max(), batch.mean()
    if isinstance(observer, Histogram):
        rows = batch.reshape(len(batch), -1)
        return rows.min(axis=1), rows.max(axis=1), rows.mean(axis=1), rows
    if isinstance(observer, ChannelMinMax):
        axis = 1 if isinstance(observer, LastAxisMinMax) else 2
        return batch.min(axis=axis), batch.max(axis=axis), batch.mean(axis=axis)
    return (batch.mean(axis=2, keepdims=True),) if isinstance(observer, ChannelMean) else (batch,)


def after(kind, batches):
    observer = kind()
    for batch in batches:
        observer.update(*map(np.asarray, reduced(observer, batch)))
    return observer


@pytest.mark.parametrize("kind", [MinMax, ChannelMean, Log2Histogram, ChannelMinMax, LastAxisMinMax, Histogram])
@settings(max_examples=30, deadline=None)
@given(before=BATCHES, more=BATCHES)
def test_a_kept_observer_goes_on_where_it_was(kind, before, more):
    kept = kind.from_state(json.loads(json.dumps(after(kind, before).state())))
    for batch in more:
        kept.update(*map(np.asarray, reduced(kept, batch)))
    through = after(kind, before + more)
    for name, value in vars(through).items():
        assert type(getattr(kept, name)) is type(value)
        assert np.asarray(getattr(kept, name)).dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(getattr(kept, name), value)


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_finite_number_comes_back_as_it_was(value):
    state = json.loads(json.dumps({"minimum": value, "maximum": value}))
    assert np.float64(MinMax.from_state(state).minimum).tobytes() == np.float64(value).tobytes()


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (MinMax, {"mean": 0.5}, "has maximum, mean, minimum instead of maximum, minimum"),
        (MinMax, {"minimum": "0"}, "minimum that is not a number"),
        (MinMax, {"minimum": True}, "minimum that is not a number"),
        (MinMax, {"minimum": None}, "minimum that is not a number"),
        (MinMax, {"minimum": [0.5]}, "minimum that is not a number"),
        (MinMax, {"minimum": float("nan")}, "minimum that does not fit float64"),
        (ChannelMean, {"total": 0.5}, "total that is not an array of numbers"),
        (ChannelMean, {"total": [[0.5]]}, "total that is not an array of numbers"),
        (ChannelMean, {"count": 0.5}, "count that does not fit int64"),
        (ChannelMean, {"count": 2**70}, "count that is not a number"),
        (ChannelMinMax, {"minimum": [1e300]}, "minimum that does not fit float32"),
        (Log2Histogram, {"counts": [0.5]}, "counts that does not fit int64"),
        (Histogram, {"counts": [-24]}, "counts that are not 1 to 4096 numbers"),
        (Histogram, {"counts": [0]}, "counts that are not 1 to 4096 numbers"),
        (Histogram, {"counts": [1] * 4097}, "counts that are not 1 to 4096 numbers"),
        (Histogram, {"samples": 0}, "bins that are not those of its minimum and maximum"),
        (Histogram, {"maximum": 1.5}, "bins that are not those of its minimum and maximum"),
        (Histogram, {"exponent": -2000}, "bins that are not those of its minimum and maximum"),
        (Histogram, {"exponent": 2000}, "bins that are not those of its minimum and maximum"),
    ],
)
def test_a_state_that_no_observer_can_have_is_refused(kind, change, said):
    state = after(kind, [np.ones((3, 4, 2), np.float32)]).state()
    assert isinstance(kind.from_state(state), Observer)
    with pytest.raises(ValueError, match=said):
        kind.from_state({**state, **change})
