"""The log2 quantizer: accurate on attention probabilities, and the same in ONNX Runtime as in numpy."""

import array_api_strict
import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxquant.passes.insert_quantizers import InsertQuantizers

from onnxquant.graph.model import Model
from onnxquant.pass_manager import PassContext
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.quantizers.log2 import Log2Quantizer
from tests.graphs import parse, run

PROBABILITIES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=17),
    elements=st.floats(0, 1, width=32, allow_subnormal=True),
)
ONE_HOT = np.eye(5, dtype=np.float32)
DENORMAL = np.full((3, 1), 1e-42, np.float32)


def log2_model(quantizer, shape):
    """X -> codes and values, through the nodes that `insert_quantizers` makes."""
    dims = ", ".join(map(str, shape))
    proto = parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ p = Identity (x) \n y = Identity (p) }}")
    model = Model(gs.import_onnx(proto))
    plan = QuantizationPlan(entries=[PlanEntry(tensor="p", role="activation", quantizer=quantizer)])
    InsertQuantizers().run(model.graph, PassContext(model, plan=plan))
    model.graph.outputs.append(model.graph.tensors()["p_log2_codes"])
    return model.to_proto()


@given(PROBABILITIES, st.sampled_from([2, 4, 6, 8]), st.sampled_from([1e-7, 1e-5, 1e-4]))
@example(ONE_HOT, 8, 1e-5)
@example(DENORMAL, 8, 1e-5)
def test_codes_of_onnx_runtime_are_numpys_but_for_float_rounding_at_a_boundary(x, bits, epsilon):
    quantizer = Log2Quantizer.from_range(float(x.min()), float(x.max()), bits=bits, epsilon=epsilon)
    values, codes = run(log2_model(quantizer, x.shape), x=x)
    ours = quantizer.quantize(x)
    # Where in the scale each value falls, in float64: the codes may differ only where this is a tie within the float32
    # rounding of ln(x + ε) - offset (two units in the last place of the larger operand) divided by the step.
    exact = (
        np.log(np.clip(x, *quantizer.clip_range).astype(np.float64) + quantizer.epsilon) - quantizer.offset
    ) / quantizer.scale
    operand = np.maximum(np.abs(np.log(x.astype(np.float64) + quantizer.epsilon)), abs(quantizer.offset))
    bound = (
        4 * np.spacing(operand.astype(np.float32)).astype(np.float64) / quantizer.scale
        + 2 * np.finfo(np.float32).eps * 2**bits
    )
    bound += np.finfo(np.float32).eps * 2 / quantizer.scale  # rounding of x + ε itself
    difference = np.abs(codes.astype(np.int64) - ours.astype(np.int64))
    distance_from_tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
    assert difference.max() <= 1
    assert (distance_from_tie[difference > 0] <= bound[difference > 0]).all()
    low, high = quantizer.code_range
    assert low <= codes.min() <= codes.max() <= high
    np.testing.assert_allclose(values, quantizer.dequantize(codes.astype(np.float32)), rtol=1e-6)


@given(PROBABILITIES, st.sampled_from([4, 6, 8]))
def test_relative_error_is_half_a_step_above_epsilon(x, bits):
    quantizer = Log2Quantizer.from_range(float(x.min()), float(x.max()), bits=bits, epsilon=1e-5)
    ratio = quantizer.fake_quantize(x).astype(np.float64) / (x.astype(np.float64) + 1e-5)
    half_step = quantizer.scale / 2
    assert (np.abs(np.log(ratio)) <= half_step + 1e-5).all()


def test_zero_comes_back_as_epsilon_and_one_as_one():
    quantizer = Log2Quantizer.from_range(0.0, 1.0, bits=8, epsilon=1e-5)
    np.testing.assert_allclose(quantizer.fake_quantize(np.array([0.0, 1.0], np.float32)), [1e-5, 1.0], rtol=1e-4)


def test_codes_below_8_bits_stay_in_their_range():
    quantizer = Log2Quantizer.from_range(0.001, 0.9, bits=4, epsilon=1e-5)
    (codes,) = run(log2_model(quantizer, (1000,)), x=np.linspace(0, 1, 1000, dtype=np.float32))[1:]
    assert (codes.min(), codes.max()) == (-8, 7)


def test_a_constant_tensor_keeps_its_value():
    x = np.full((4, 1), 1.0, np.float32)  # attention over a single token
    quantizer = Log2Quantizer.from_range(1.0, 1.0, bits=8, epsilon=1e-5)
    values, _ = run(log2_model(quantizer, x.shape), x=x)
    np.testing.assert_allclose(values, x, rtol=1e-4)


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.015), (6, 0.06), (4, 0.2)])
def test_attention_output_keeps_the_accuracy_the_method_promises(bits, limit):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 64, 64)) * np.array([0.5, 1, 3, 8])[:, None, None]
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention = (attention / attention.sum(-1, keepdims=True)).astype(np.float32)
    values = rng.standard_normal((4, 64, 32)).astype(np.float32)
    quantizer = Log2Quantizer.from_range(float(attention.min()), float(attention.max()), bits=bits, epsilon=1e-5)
    exact, quantized = attention @ values, quantizer.fake_quantize(attention) @ values
    assert np.linalg.norm(quantized - exact) / np.linalg.norm(exact) < limit


def test_other_array_libraries_give_the_same_codes():
    x = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    quantizer = Log2Quantizer.from_range(0.0, 1.0, bits=8, epsilon=1e-5)
    np.testing.assert_array_equal(np.asarray(quantizer.quantize(array_api_strict.asarray(x))), quantizer.quantize(x))
