"""What layers read of attention's Softmax and of GELU is quantized in two ranges; other tensors are not."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from onnxquant.passes.quantize_twin_uniform import QuantizeTwinUniform

from onnxquant import rewrite
from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.errors import OnnxquantError
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.shift_log import ShiftLogQuantizer
from onnxquant.quantizers.twin_uniform import GELU_MINIMUM, TwinUniformQuantizer
from onnxquant.report.page_data import gather
from onnxquant.search.objective import quantized_for
from tests.graphs import attention, images, op_types, parse, run
from tests.passes.skewed import FORMS, ONE_NODE, mlp, tokens


def quantized(proto, data=None, target="tensorrt", **overrides):
    brief = {"search_scales.candidates": 20, "search_scales.rounds": 1, **overrides}
    return rewrite(
        proto,
        recipe="ptq4vit",
        calibration=images(32) if data is None else data,
        target=target,
        overrides=tuple(f"{option}={value}" for option, value in brief.items()),
        samples=16,
        min_sqnr=-np.inf,
    )


def twins(result):
    return {e.tensor: e for e in result.plan.entries if isinstance(e.quantizer, TwinUniformQuantizer)}


@pytest.mark.parametrize("target", ["tensorrt", "reference"])
def test_the_probabilities_reach_their_product_in_two_ranges_and_nothing_else_does(target):
    result = quantized(attention(), target=target)
    assert list(twins(result)) == ["probs"]
    assert twins(result)["probs"].consumers == [n.name for n in result.model.graph.node if n.output[0] == "mixed"]
    entries = {entry.tensor: entry.quantizer.kind for entry in result.plan.entries}
    assert {entries[name] for name in ("q", "kt", "v", "mixed")} == {"uniform"}
    onnx.checker.check_model(result.model, full_check=True)
    assert op_types(result.model).count("Where") == 1
    assert result.report.sqnr_db > 20


def test_where_the_target_multiplies_probabilities_in_float_they_stay_float():
    assert not twins(quantized(attention(), target="onnxruntime"))


@pytest.mark.parametrize("function", ["Softmax", "Sigmoid"])
def test_a_softmax_that_is_no_attention_and_another_function_are_left_alone(function):
    assert not twins(quantized(mlp(ONE_NODE.replace("Gelu", function)), tokens()))


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_the_layer_behind_a_gelu_reads_two_ranges(text):
    found = twins(quantized(mlp(text), tokens()))
    assert list(found) == ["active"]
    quantizer = found["active"].quantizer
    assert (quantizer.split, quantizer.low_scale) == (0, pytest.approx(-GELU_MINIMUM / 128))
    assert len(found["active"].consumers) == 1


def test_a_gelu_before_a_float_layer_is_left_alone():
    overrides = {"quantize_linear_weights.exclude": '["MatMul_2"]'}
    assert not twins(quantized(mlp(), tokens(), **overrides))


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize(
    ("proto", "data", "make", "parameters"),
    [
        (attention(), images(1), TwinUniformQuantizer.post_softmax, range(20)),
        (mlp(), tokens()[:1], TwinUniformQuantizer.post_gelu, np.linspace(0.01, 1.2, 100)),
    ],
    ids=["Softmax", "GELU"],
)
def test_no_other_parameter_of_the_method_has_a_smaller_squared_error(proto, data, make, parameters, bits):
    result = quantized(proto, np.repeat(data, 32, axis=0), **{"quantize_twin_uniform.bits": bits})
    ((tensor, entry),) = twins(result).items()
    whole = onnx.ModelProto.FromString(proto.SerializeToString())
    whole.graph.output.append(onnx.ValueInfoProto(name=tensor))
    seen = run(whole, **{proto.graph.input[0].name: data})[-1]

    def error(quantizer):
        return float(np.square(quantizer.fake_quantize(seen) - seen).mean())

    tried = parameters if tensor == "probs" else seen.max() * parameters
    least = min(error(make(parameter, bits=bits)) for parameter in tried)
    assert error(entry.quantizer) <= 1.02 * least  # the pass sees a histogram


def test_the_report_names_both_steps():
    proto, result, held = attention(), quantized(attention()), open_dataset(images(4), input_specs(attention()), None)
    row = next(row for row in gather(proto, result, held).plan if row.entry.tensor == "probs")
    assert row.parameters == "int8, Δ 0.00197 below 0.25, 0.00787 above"
    assert row.chip.kind == "twin-uniform"


def test_a_gelu_that_never_rises_above_zero_gets_a_step_all_the_same():
    proto = parse(
        "g (float[N, 16, 8] x) => (float[N, 16, 8] y) { z = Mul (x, zero)\n a = Gelu (z)\n y = MatMul (a, w) }",
        20,
        zero=np.float32(0),
        w=np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32),
    )
    quantizer = twins(quantized(proto, tokens()))["a"].quantizer
    assert (quantizer.fake_quantize(np.zeros(3, np.float32)) == 0).all()


def test_the_plan_gives_the_same_bytes_without_data(tmp_path):
    decided = quantized(attention())
    (tmp_path / "plan.json").write_text(decided.plan.to_json())
    plan = QuantizationPlan.from_json(tmp_path / "plan.json")
    assert rewrite(attention(), plan=plan).model.SerializeToString() == decided.model.SerializeToString()


def test_ranges_must_be_measured():
    with pytest.raises(OnnxquantError, match=r"quantize_twin_uniform: .*give data with --calib"):
        QuantizeTwinUniform()(gs.import_onnx(attention()), target="tensorrt")


def test_tensorrt_builds_it():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    from onnxquant.deploy.build import build_engine

    for bits in (8, 6):
        result = quantized(attention(), **{"quantize_twin_uniform.bits": bits})
        assert build_engine(result.model, compute_capabilities=("8.6",)).plan


@pytest.mark.parametrize(
    "kind",
    [
        TwinUniformQuantizer.post_softmax(3, bits=4),
        Log2Quantizer(4, 0.0, 1.0),
        ShiftLogQuantizer.post_softmax(2**0.5, bits=4),
    ],
)
def test_the_search_computes_with_the_quantized_probabilities(kind):
    node = next(node for node in gs.import_onnx(attention()).nodes if node.outputs[0].name == "mixed")
    node.name = "product"
    x = torch.rand(4, 4)
    for consumers, expected in (("product", kind.fake_quantize(x.numpy())), ("another", x.numpy())):
        entry = PlanEntry(tensor="probs", role="activation", quantizer=kind, consumers=[consumers])
        np.testing.assert_allclose(quantized_for(node, x, entry).numpy(), expected, rtol=1e-6)
