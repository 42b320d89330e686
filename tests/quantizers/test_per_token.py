"""Per-token quantization: a scale a token, outliers exact, the same in ONNX Runtime as in numpy."""

import array_api_strict
import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxquant.passes.insert_quantizers import InsertQuantizers
from pydantic import TypeAdapter, ValidationError

from onnxquant.graph.model import Model
from onnxquant.pass_manager import PassContext
from onnxquant.plan import PlanEntry, QuantizationPlan, Quantizer
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.targets import load_target
from tests.graphs import parse, run

VALUES = st.floats(-(2.0**14), 2.0**14, width=32, allow_subnormal=True)
NORMALISED = st.floats(-8, 8, width=32)
THRESHOLDS = st.none() | st.floats(0.01, 10)


@st.composite
def cases(draw):
    """A quantizer and a tensor with its number of tokens; equal and all-zero ones are among them."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=4, max_side=5))
    x = draw(hnp.arrays(np.float32, shape, elements=draw(st.sampled_from([VALUES, NORMALISED]))))
    scales = st.none() | hnp.arrays(np.float32, shape[1:-1], elements=st.floats(2.0**-10, 4, width=32))
    return PerTokenQuantizer(draw(st.sampled_from([2, 4, 6, 8])), draw(scales), draw(THRESHOLDS)), x


def product_model(quantizer, shape, weight, opset, target):
    """X -> x times weight, through the nodes that `insert_quantizers` makes, and the codes and outliers on the way."""
    dims = ", ".join(map(str, shape))
    text = f"g (float[{dims}] x) => (float[{dims}] y) {{ p = Identity (x) \n y = MatMul (p, w) }}"
    model = Model(gs.import_onnx(parse(text, opset, w=weight)))
    plan = QuantizationPlan(entries=[PlanEntry(tensor="p", role="activation", quantizer=quantizer)])
    InsertQuantizers().run(model.graph, PassContext(model, load_target(target), plan))
    names = ["p_codes"] + (["p_outliers"] if quantizer.threshold is not None else [])
    model.graph.outputs += [model.graph.tensors()[name] for name in names]
    return model.to_proto()


@pytest.mark.parametrize(("opset", "target"), [(17, "tensorrt"), (18, "reference")])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_codes_and_outliers_equal_onnx_runtime_bit_for_bit_and_products_up_to_rounding(case, opset, target):
    quantizer, x = case
    weight = np.random.default_rng(0).standard_normal((x.shape[-1],) * 2).astype(np.float32)
    y, codes, *outliers = run(product_model(quantizer, x.shape, weight, opset, target), x=x)
    inner, apart = quantizer.split(x)
    middle = 0 if codes.dtype == np.int8 else 2 ** (quantizer.bits - 1)
    np.testing.assert_array_equal(codes - float(middle), quantizer.quantize(inner, quantizer.scales(inner)))
    assert not outliers or np.array_equal(outliers[0], apart)
    read = quantizer.fake_quantize(x).astype(np.float64)
    assert (np.abs(y - read @ weight) <= 1e-5 * (np.abs(read) @ np.abs(weight)) + 1e-30).all()


@settings(deadline=None)
@given(cases())
def test_torch_and_other_array_libraries_give_the_same_values(case):
    quantizer, x = case
    ours = quantizer.fake_quantize(x)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(quantizer.fake_quantize(torch.from_numpy(x)).numpy(), ours)
    np.testing.assert_array_equal(np.asarray(quantizer.fake_quantize(array_api_strict.asarray(x))), ours)


@given(cases())
def test_outliers_and_zeros_are_exact(case):
    quantizer, x = case
    kept = x == 0
    if quantizer.threshold is not None:
        kept |= np.abs(x) >= np.float32(quantizer.threshold)
    np.testing.assert_array_equal(quantizer.fake_quantize(x)[kept], x[kept])


@given(hnp.arrays(np.float32, (2, 3, 4), elements=VALUES), st.integers(2, 8), THRESHOLDS)
def test_scales_made_at_run_time_leave_each_value_within_half_a_step_of_its_token(x, bits, threshold):
    quantizer = PerTokenQuantizer(bits, None, threshold)
    inner, _ = quantizer.split(x)
    step = np.abs(inner).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(quantizer.fake_quantize(x).astype(np.float64) - x) <= 0.5001 * step + 1e-37).all()


@given(cases())
def test_a_quantizer_survives_json_unchanged(case):
    adapter = TypeAdapter(Quantizer)
    again = adapter.validate_json(adapter.dump_json(case[0], exclude_none=True))
    assert (again.bits, again.threshold) == (case[0].bits, case[0].threshold)
    np.testing.assert_array_equal(again.scale, case[0].scale)


@pytest.mark.parametrize(
    "change", [{"bits": 9}, {"scale": [0.1, 0.0]}, {"scale": [float("inf")]}, {"threshold": 0.0}, {"threshold": "high"}]
)
def test_impossible_parameters_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        PerTokenQuantizer(**{"bits": 8, "scale": [0.1], **change})


def test_a_large_value_costs_neither_its_own_token_nor_the_others_anything():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 8, 64)).astype(np.float32)
    large = x.copy()
    large[:, 3, 7] = -40

    def error(quantizer, values):
        return np.square(quantizer.fake_quantize(values) - values).mean()

    without = error(PerTokenQuantizer(4), x)
    assert error(PerTokenQuantizer(4, None, 5.0), large) < 1.01 * without
    assert error(PerTokenQuantizer(4), large) > 5 * without
