"""Twin uniform quantization: two ranges with a step each, the same in ONNX Runtime as in numpy."""

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
from onnxquant.quantizers.twin_uniform import GELU_MINIMUM, TwinUniformQuantizer
from tests.graphs import parse, run

BITS = st.sampled_from([2, 4, 6, 8])
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9)
PROBABILITIES = hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32, allow_subnormal=False))
AFTER_GELU = hnp.arrays(np.float32, SHAPES, elements=st.floats(-0.1875, 16, width=32, allow_subnormal=False))
SOFTMAX = st.builds(TwinUniformQuantizer.post_softmax, st.integers(0, 19), bits=BITS)
GELU = st.builds(TwinUniformQuantizer.post_gelu, st.floats(0.01, 20), bits=BITS)


def twin_model(quantizer, shape):
    """X -> values and both ranges' codes, through the nodes that `insert_quantizers` makes."""
    dims = ", ".join(map(str, shape))
    proto = parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ p = Identity (x) \n y = Identity (p) }}")
    model = Model(gs.import_onnx(proto))
    plan = QuantizationPlan(entries=[PlanEntry(tensor="p", role="activation", quantizer=quantizer)])
    InsertQuantizers().run(model.graph, PassContext(model, plan=plan))
    model.graph.outputs += [model.graph.tensors()[name] for name in ("p_codes", "p_codes_1")]
    return model.to_proto()


def same_as_onnx_runtime(quantizer, x):
    values, low, high = run(twin_model(quantizer, x.shape), x=x)
    np.testing.assert_array_equal(low, quantizer.low.quantize(x))
    np.testing.assert_array_equal(high, quantizer.high.quantize(x))
    np.testing.assert_array_equal(values, quantizer.fake_quantize(x))


@settings(max_examples=30)
@given(SOFTMAX, PROBABILITIES)
def test_codes_and_values_of_probabilities_equal_onnx_runtime_bit_for_bit(quantizer, x):
    same_as_onnx_runtime(quantizer, x)


@settings(max_examples=30)
@given(GELU, AFTER_GELU)
def test_codes_and_values_after_gelu_equal_onnx_runtime_bit_for_bit(quantizer, x):
    same_as_onnx_runtime(quantizer, x)


@given(st.one_of(SOFTMAX, GELU), AFTER_GELU)
def test_torch_and_other_array_libraries_give_the_same_values(quantizer, x):
    ours = quantizer.fake_quantize(x)
    np.testing.assert_array_equal(quantizer.fake_quantize(torch.from_numpy(x)).numpy(), ours)
    np.testing.assert_array_equal(np.asarray(quantizer.fake_quantize(array_api_strict.asarray(x))), ours)


@given(SOFTMAX, PROBABILITIES)
def test_every_probability_is_within_half_a_step_of_its_range(quantizer, x):
    step = np.where(x < quantizer.split, quantizer.low_scale, quantizer.high_scale)
    assert (np.abs(quantizer.fake_quantize(x).astype(np.float64) - x) <= step / 2 + 1e-6).all()


@given(st.one_of(SOFTMAX, GELU))
def test_each_range_has_half_of_the_codes(quantizer):
    edge = float(np.nextafter(np.float32(quantizer.split), np.float32(-1)))
    lowest, highest = (0, 1) if quantizer.split else (GELU_MINIMUM, quantizer.high_scale * 200)
    low = quantizer.low.quantize(np.array([lowest, edge], np.float32))
    high = quantizer.high.quantize(np.array([quantizer.split, highest], np.float32))
    assert low.max() - low.min() <= 2 ** (quantizer.bits - 1)  # 0, of both ranges after GELU, among them
    assert high.min() >= 0
    assert high.max() == 2 ** (quantizer.bits - 1) - 1


def test_zero_one_and_the_minimum_of_gelu_are_exact():
    ends = np.array([0.0, 1.0], np.float32)
    np.testing.assert_allclose(TwinUniformQuantizer.post_softmax(5, bits=8).fake_quantize(ends), ends, rtol=1e-6)
    ends = np.array([GELU_MINIMUM, 0.0, 6.0], np.float32)
    np.testing.assert_allclose(TwinUniformQuantizer.post_gelu(6.0, bits=4).fake_quantize(ends), ends, rtol=1e-6)


@given(st.one_of(SOFTMAX, GELU))
def test_a_quantizer_survives_json_unchanged(quantizer):
    adapter = TypeAdapter(Quantizer)
    assert adapter.validate_json(adapter.dump_json(quantizer)) == quantizer


@pytest.mark.parametrize("change", [{"low_scale": 0.0}, {"high_scale": float("inf")}, {"split": -1.0}, {"bits": 9}])
def test_impossible_parameters_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        TwinUniformQuantizer(**{"bits": 8, "split": 0.5, "low_scale": 0.1, "high_scale": 0.2, **change})


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_attention_is_closer_to_itself_than_with_one_step(bits):
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((4, 64, 64))
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention = (attention / attention.sum(-1, keepdims=True)).astype(np.float32)
    errors = {
        exponent: np.square(TwinUniformQuantizer.post_softmax(exponent, bits=bits).fake_quantize(attention) - attention)
        for exponent in (0, 3)
    }
    assert errors[3].mean() < errors[0].mean() / 2
