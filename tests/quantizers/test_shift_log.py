"""Shift-log quantization: 0 and the largest level are exact, and ONNX Runtime computes what numpy and torch do."""

import array_api_strict
import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxquant.passes.insert_quantizers import InsertQuantizers
from pydantic import TypeAdapter, ValidationError

from onnxquant.graph.model import Model
from onnxquant.pass_manager import PassContext
from onnxquant.plan import PlanEntry, QuantizationPlan, Quantizer
from onnxquant.quantizers.shift_log import SMALLEST_BASE, ShiftLogQuantizer
from tests.graphs import parse, run

EPSILON = float(np.finfo(np.float32).eps)
BITS = st.sampled_from([2, 4, 6, 8])
BASES = st.one_of(st.sampled_from([2.0, 2**0.5, SMALLEST_BASE]), st.floats(1.01, 4))
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9)
PROBABILITIES = hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32, allow_subnormal=True))
AFTER_GELU = hnp.arrays(np.float32, SHAPES, elements=st.floats(-0.1875, 16, width=32, allow_subnormal=True))
SOFTMAX = st.builds(ShiftLogQuantizer.post_softmax, BASES, bits=BITS, largest=st.floats(0.01, 1))
GELU = st.builds(ShiftLogQuantizer.post_gelu, st.floats(0.01, 5), BASES, st.integers(0, 3), bits=BITS)
SPREAD = st.builds(
    lambda high, ratio, bits: ShiftLogQuantizer.spread(-0.17, high, 0.17 * ratio, bits=bits),
    st.floats(1e-6, 20),
    st.floats(1.1, 40),
    BITS,
)
ANY = st.one_of(SOFTMAX, GELU, SPREAD)


def shift_log_model(quantizer, shape):
    """X -> values and codes, through the nodes that `insert_quantizers` makes."""
    dims = ", ".join(map(str, shape))
    proto = parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ p = Identity (x) \n y = Identity (p) }}")
    model = Model(gs.import_onnx(proto))
    plan = QuantizationPlan(entries=[PlanEntry(tensor="p", role="activation", quantizer=quantizer)])
    InsertQuantizers().run(model.graph, PassContext(model, plan=plan))
    model.graph.outputs.append(model.graph.tensors()["p_shift_log_codes"])
    return model.to_proto()


def same_but_for_ties(quantizer, x, codes):
    """Whether codes are numpy's, or next to them where float32 can't tell on which side of a tie a value falls."""
    shift, unit = (float(np.float32(value)) for value in (quantizer.shift, quantizer.unit))
    logarithm = np.log(np.clip((x.astype(np.float64) + shift) / unit, *quantizer.clip_range))
    exact = logarithm / quantizer.step
    # Roundings of the sum, the quotient and the logarithm, each relative, and that of the division.
    bound = EPSILON * (4 + np.abs(logarithm)) / -quantizer.step + 2 * EPSILON * np.abs(exact)
    difference = np.abs(np.asarray(codes).astype(np.float64) - quantizer.quantize(x))
    from_tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
    return bool(((difference == 0) | ((difference == 1) & (from_tie <= bound))).all())


def same_as_onnx_runtime(quantizer, x):
    values, codes = run(shift_log_model(quantizer, x.shape), x=x)
    assert same_but_for_ties(quantizer, x, codes)
    low, high = quantizer.code_range
    assert low <= codes.min() <= codes.max() <= high
    rounding = 1e-6 * max(quantizer.unit, float(np.abs(values).max()))
    np.testing.assert_allclose(values, quantizer.dequantize(codes.astype(np.float32)), rtol=2e-5, atol=rounding)


@settings(max_examples=50)
@given(SOFTMAX, PROBABILITIES)
@example(ShiftLogQuantizer.post_softmax(2, bits=8), np.eye(5, dtype=np.float32))
@example(ShiftLogQuantizer.post_softmax(2**0.5, bits=8), np.full((3, 1), 1e-42, np.float32))
def test_codes_and_values_of_probabilities_are_those_of_onnx_runtime(quantizer, x):
    same_as_onnx_runtime(quantizer, x)


@settings(max_examples=50)
@given(st.one_of(GELU, SPREAD), AFTER_GELU)
@example(ShiftLogQuantizer.post_gelu(0.17, 2, 5, bits=8), np.zeros((4, 4), np.float32))
@example(ShiftLogQuantizer.post_gelu(0.17, 2, 5, bits=8), np.full((4, 4), -0.17, np.float32))
def test_codes_and_values_after_gelu_are_those_of_onnx_runtime(quantizer, x):
    same_as_onnx_runtime(quantizer, x)


@given(ANY, AFTER_GELU)
def test_torch_and_other_array_libraries_give_the_same_codes(quantizer, x):
    assert same_but_for_ties(quantizer, x, quantizer.quantize(torch.from_numpy(x)))
    np.testing.assert_array_equal(np.asarray(quantizer.quantize(array_api_strict.asarray(x))), quantizer.quantize(x))
    codes = quantizer.quantize(x)
    ours, torchs = quantizer.dequantize(codes), quantizer.dequantize(torch.from_numpy(codes)).numpy()
    np.testing.assert_allclose(torchs, ours, rtol=2e-5, atol=1e-6 * max(1.0, float(np.abs(ours).max())))


@given(st.one_of(GELU, SPREAD))
def test_zero_after_gelu_comes_back_as_zero_to_the_bit(quantizer):
    x = np.zeros(2, np.float32)
    assert (quantizer.fake_quantize(x) == 0).all()
    assert (run(shift_log_model(quantizer, (2,)), x=x)[0] == 0).all()


@given(SOFTMAX)
def test_of_probabilities_zero_and_the_largest_level_are_exact_to_the_bit(quantizer):
    x = np.array([0, quantizer.unit], np.float32)
    np.testing.assert_array_equal(quantizer.fake_quantize(x), x)
    np.testing.assert_array_equal(run(shift_log_model(quantizer, (2,)), x=x)[0], x)


@given(ANY, AFTER_GELU)
def test_within_the_levels_the_error_is_half_a_step_of_the_logarithm(quantizer, x):
    shifted = x.astype(np.float64) + quantizer.shift
    last = 2**quantizer.bits - 1 - quantizer.zero_code
    smallest = quantizer.unit * quantizer.base ** float(quantizer.level - last)
    inside = (shifted >= max(smallest, 1e-37)) & (shifted <= quantizer.unit * quantizer.base**quantizer.level)
    ratio = (quantizer.fake_quantize(x)[inside] + quantizer.shift) / shifted[inside]
    # Below 0 the level and the shift nearly cancel: what float32 keeps of the difference is relative to the shift.
    slack = 1e-5 + 2 * EPSILON * quantizer.shift / shifted[inside]
    assert (np.abs(np.log(ratio)) <= np.log(quantizer.base) / 2 + slack).all()


def test_with_base_2_the_levels_are_powers_of_two_and_zero():
    levels = ShiftLogQuantizer.post_softmax(2, bits=4).dequantize(np.arange(-8, 8, dtype=np.float32))
    np.testing.assert_allclose(levels, [*(2.0 ** -np.arange(15)), 0], rtol=1e-5)


def test_without_a_zero_code_the_last_level_is_one_like_the_others():
    quantizer = ShiftLogQuantizer(4, 2.0, 1.0)
    np.testing.assert_allclose(quantizer.fake_quantize(np.zeros(1, np.float32)), 2.0**-15, rtol=1e-5)


@given(SPREAD)
def test_spread_levels_reach_from_end_to_end_within_half_a_step(quantizer):
    high = quantizer.dequantize(np.array([quantizer.code_range[0]], np.float32))[0]
    low = quantizer.dequantize(np.array([quantizer.code_range[1]], np.float32))[0]
    number, step = 2**quantizer.bits - 1, -quantizer.step
    ends = np.log1p(np.array([high, low], np.float64) / quantizer.shift)
    assert ends[0] - ends[1] == pytest.approx(number * step, rel=1e-3, abs=1e-4)
    assert abs(ends[1] - np.log1p(-0.17 / quantizer.shift)) <= step / 2 + 1e-4


def test_the_larger_the_shift_the_more_evenly_the_levels_lie():
    def widest_over_closest(shift):
        quantizer = ShiftLogQuantizer.spread(-0.17, 3, shift, bits=4)
        gaps = -np.diff(quantizer.dequantize(np.arange(-8, 8, dtype=np.float32)))
        return gaps.max() / gaps.min()

    assert widest_over_closest(0.2) > 50 > widest_over_closest(0.5) > 2 > widest_over_closest(17)


@given(ANY)
def test_a_quantizer_survives_json_unchanged(quantizer):
    adapter = TypeAdapter(Quantizer)
    assert adapter.validate_json(adapter.dump_json(quantizer)) == quantizer


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bits": 9}, "bits"),
        ({"base": 1.0}, "base"),
        ({"unit": 0.0}, "unit"),
        ({"shift": -1.0}, "shift"),
        ({"shift": float("inf")}, "shift"),
        ({"level": 256}, "level must be one of the 256 codes"),
        ({"level": 255}, "largest value that float32 doesn't hold"),
        ({"shift": 0.17, "zero_code": True}, "zero_code is for a shift of 0"),
    ],
)
def test_impossible_parameters_are_refused(change, named):
    with pytest.raises(ValidationError, match=named):
        ShiftLogQuantizer(**{"bits": 8, "base": 2.0, "unit": 1.0, **change})


def test_the_code_for_zero_keeps_many_small_probabilities_from_adding_up():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 64, 64)) * np.array([3, 5, 8, 12])[:, None, None]
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention = (attention / attention.sum(-1, keepdims=True)).astype(np.float32)
    values = (1 + rng.standard_normal((4, 64, 32))).astype(np.float32)  # with a mean, as trained ones have

    def error(quantizer):
        exact, quantized = attention @ values, quantizer.fake_quantize(attention) @ values
        return np.linalg.norm(quantized - exact) / np.linalg.norm(exact)

    with_zero, without = ShiftLogQuantizer.post_softmax(2**0.5, bits=4), ShiftLogQuantizer(4, 2**0.5, 1.0)
    assert error(with_zero) < 0.6 * error(without)
