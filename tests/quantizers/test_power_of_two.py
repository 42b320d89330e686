"""Power-of-two factors: one scale for all channels, the same in ONNX Runtime as in numpy."""

import array_api_strict
import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxquant.passes.insert_quantizers import InsertQuantizers
from pydantic import TypeAdapter, ValidationError

from onnxquant.graph.model import Model
from onnxquant.pass_manager import PassContext
from onnxquant.plan import PlanEntry, QuantizationPlan, Quantizer
from onnxquant.quantizers.power_of_two import PowerOfTwoFactorQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer
from tests.graphs import parse, run

CHANNELS = 5
FINITE = st.floats(-(2.0**20), 2.0**20, width=32).map(lambda value: value if abs(value) > 1e-20 else 0.0)
TENSORS = hnp.arrays(np.float32, (2, 3, CHANNELS), elements=FINITE)


def fitted(x, bits=8, symmetric=False, factors=4):
    axes = tuple(range(x.ndim - 1))
    return PowerOfTwoFactorQuantizer.from_ranges(
        x.min(axis=axes), x.max(axis=axes), bits=bits, symmetric=symmetric, factors=factors
    )


QUANTIZERS = st.builds(fitted, TENSORS, st.sampled_from([2, 4, 6, 8]), st.booleans(), st.sampled_from([1, 4, 8]))


def model_of(quantizer, shape):
    dims = ", ".join(map(str, shape))
    proto = parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ p = Identity (x) \n y = Identity (p) }}")
    model = Model(gs.import_onnx(proto))
    plan = QuantizationPlan(entries=[PlanEntry(tensor="p", role="activation", quantizer=quantizer)])
    InsertQuantizers().run(model.graph, PassContext(model, plan=plan))
    model.graph.outputs += [tensor for name, tensor in model.graph.tensors().items() if name.endswith("_codes")]
    return model.to_proto()


@settings(max_examples=50)
@given(QUANTIZERS, TENSORS)
def test_codes_and_values_equal_onnx_runtime_bit_for_bit(quantizer, x):
    assume(quantizer.bits == 8 or quantizer.scale > 1e-6)  # ONNX Runtime takes a Clip to within 1e-7 of all codes out
    values, codes = run(model_of(quantizer, x.shape), x=x)
    np.testing.assert_array_equal(codes, quantizer.uniform.quantize(x / quantizer.factors))
    np.testing.assert_array_equal(values, quantizer.fake_quantize(x))


@given(QUANTIZERS, TENSORS)
def test_torch_and_other_array_libraries_give_the_same_values(quantizer, x):
    ours = quantizer.fake_quantize(x)
    np.testing.assert_array_equal(quantizer.fake_quantize(torch.from_numpy(x)).numpy(), ours)
    np.testing.assert_array_equal(np.asarray(quantizer.fake_quantize(array_api_strict.asarray(x))), ours)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-45, 3.0, -3.0])
def test_a_tensor_of_one_value_keeps_it(value, symmetric):
    x = np.full((2, CHANNELS), value, np.float32)
    assert np.abs(fitted(x, symmetric=symmetric).fake_quantize(x) - x).max() <= abs(value) * 1e-6 + 1e-37


def test_each_channel_gets_the_smallest_factor_that_covers_it():
    reach = np.array([1.0, 0.5, 0.25, 0.125, 0.01], np.float32)
    assert fitted(np.stack([-reach, reach])).exponents == (3, 2, 1, 0, 0)
    assert fitted(np.stack([-reach, reach]), symmetric=True).exponents == (3, 2, 1, 0, 0)


def test_a_channel_that_is_hardly_clipped_may_have_finer_steps():
    """With few codes the steps cost more than the edge of the range does."""
    reach = np.array([1.0, 0.55], np.float32)
    assert fitted(np.stack([-reach, reach]), bits=8).exponents[1] == 3
    assert fitted(np.stack([-reach, reach]), bits=2).exponents[1] < 3


def test_factors_are_those_given():
    reach = np.array([1.0, 2.0**-5], np.float32)
    assert fitted(np.stack([-reach, reach]), factors=8).exponents == (7, 2)
    assert fitted(np.stack([-reach, reach]), factors=1).exponents == (0, 0)


@pytest.mark.parametrize("bits", [8, 6])
def test_channels_of_unequal_range_are_closer_to_themselves_than_with_one_scale(bits):
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32) * np.geomspace(0.05, 2, 16, dtype="f4")
    one = UniformQuantizer.from_range(x.min(), x.max(), bits=bits, symmetric=False)
    errors = [np.square((each.fake_quantize(x) - x) / x.std(axis=0)).mean() for each in (fitted(x, bits), one)]
    assert errors[0] < errors[1] / 10


@given(QUANTIZERS)
def test_a_quantizer_survives_json_unchanged(quantizer):
    adapter = TypeAdapter(Quantizer)
    assert adapter.validate_json(adapter.dump_json(quantizer)) == quantizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"zero_point": 256}, "zero_point"),
        ({"exponents": ()}, "exponents"),
        ({"exponents": (-1,)}, "exponents"),
        ({"bits": 9}, "bits"),
    ],
)
def test_impossible_parameters_are_refused(change, message):
    fine = {"bits": 8, "signed": False, "scale": 0.1, "zero_point": 3, "exponents": (0, 3)}
    with pytest.raises(ValidationError, match=message):
        PowerOfTwoFactorQuantizer(**{**fine, **change})
