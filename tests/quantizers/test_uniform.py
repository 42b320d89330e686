"""The uniform quantizer is ONNX's QuantizeLinear and DequantizeLinear, for any weights."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxquant.quantizers.uniform import UniformQuantizer
from tests.graphs import parse, run

BITS = st.integers(2, 8)
WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True),
)


def per_channel(weight, bits=8, symmetric=False):
    others = tuple(range(1, weight.ndim))
    return UniformQuantizer.from_range(
        weight.min(axis=others), weight.max(axis=others), bits=bits, symmetric=symmetric, axis=0
    )


@given(WEIGHTS, st.booleans())
def test_codes_and_values_equal_onnx_runtime_bit_for_bit(weight, symmetric):
    quantizer = per_channel(weight, symmetric=symmetric)
    dims = ", ".join(map(str, weight.shape))
    kind = "int8" if symmetric else "uint8"
    model = parse(
        f"""g (float[{dims}] x) => ({kind}[{dims}] codes, float[{dims}] y) {{
            codes = QuantizeLinear <axis = 0> (x, scale, zero_point)
            y = DequantizeLinear <axis = 0> (codes, scale, zero_point)
        }}""",
        scale=quantizer.scale,
        zero_point=quantizer.zero_point.astype(quantizer.code_dtype),
    )
    codes, values = run(model, x=weight)
    ours = quantizer.quantize(weight)
    # Symmetric codes at 8 bits leave -128 unused only for the range's own values, and nothing here lies outside it.
    np.testing.assert_array_equal(codes, ours)
    np.testing.assert_array_equal(values, quantizer.dequantize(ours))


@given(WEIGHTS, BITS, st.booleans())
def test_every_value_of_the_range_is_within_half_a_step(weight, bits, symmetric):
    quantizer = per_channel(weight, bits, symmetric)
    error = np.abs(quantizer.fake_quantize(weight).astype(np.float64) - weight)
    step = quantizer.along_axis(quantizer.scale, weight).astype(np.float64)
    # Half a step, one more half where the zero-point's own rounding pushes an end of the range over, and float
    # rounding.
    assert (error <= step * (0.5 if symmetric else 1.0) * 1.001 + np.abs(weight) * 1e-6).all()


@given(WEIGHTS, BITS, st.booleans())
def test_zero_is_exact_and_codes_stay_in_range(weight, bits, symmetric):
    quantizer = per_channel(weight, bits, symmetric)
    low, high = quantizer.code_range
    codes = quantizer.quantize(weight)
    assert codes.min() >= low
    assert codes.max() <= high
    assert (quantizer.fake_quantize(np.zeros_like(weight)) == 0).all()
    assert (quantizer.scale > 0).all()
    if symmetric:
        assert (quantizer.zero_point == 0).all()


@pytest.mark.parametrize(
    "weight", [np.zeros((2, 3)), np.full((2, 3), 1e-42), np.full((2, 3), -7.0), np.full((2, 3), 7.0)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_all_zero_denormal_and_constant_channels_survive(weight, symmetric):
    weight = weight.astype(np.float32)
    restored = per_channel(weight, symmetric=symmetric).fake_quantize(weight)
    np.testing.assert_allclose(restored, weight, rtol=1e-6, atol=1e-37)


def test_a_range_that_excludes_zero_is_widened_to_it():
    quantizer = UniformQuantizer.from_range(np.float32(1), np.float32(2), bits=8, symmetric=False)
    assert quantizer.zero_point == 0
    assert abs(quantizer.fake_quantize(np.array([1.5], np.float32))[0] - 1.5) <= 2 / 255 / 2 + 1e-7


def test_the_corrected_equation_beats_the_printed_one():
    weight = np.random.default_rng(0).standard_normal((64, 27)).astype(np.float32)
    quantizer = UniformQuantizer.from_range(weight.min(), weight.max(), bits=8, symmetric=False)
    step, zero_point = float(quantizer.scale), float(quantizer.zero_point)
    printed = (np.clip(np.rint((weight - weight.min()) / step + zero_point), 0, 255) - zero_point) * step

    def relative_error(values):
        return np.linalg.norm(values - weight) / np.linalg.norm(weight)

    assert relative_error(quantizer.fake_quantize(weight)) < 0.01
    assert relative_error(printed) > 0.5


def test_other_array_libraries_give_the_same_codes():
    weight = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    quantizer = per_channel(weight, 4)
    strict = quantizer.quantize(array_api_strict.asarray(weight))
    np.testing.assert_array_equal(np.asarray(strict), quantizer.quantize(weight))
    np.testing.assert_array_equal(np.asarray(quantizer.dequantize(strict)), quantizer.fake_quantize(weight))
