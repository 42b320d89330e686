"""What layers read of a GELU is quantized on a shifted logarithmic scale; other activations are not."""

import numpy as np
import onnx
import pytest
import torch
from onnxquant.passes.quantize_gelu import QuantizeGelu
from onnxquant.passes.quantize_twin_uniform import QuantizeTwinUniform

from onnxquant import rewrite
from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.calibration.histogram import Histogram
from onnxquant.calibration.range_methods import find_range
from onnxquant.errors import OnnxquantError
from onnxquant.plan import QuantizationPlan
from onnxquant.quantizers.shift_log import BASES, ShiftLogQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.report.page_data import gather
from tests.fixtures import load_fixture
from tests.graphs import parse, run
from tests.passes import skewed
from tests.passes.skewed import FORMS, ONE_NODE, SPELT_OUT, mlp, shifted, tokens

SILU = ONE_NODE.replace("active = Gelu (hidden)", "gate = Sigmoid (hidden)\n active = Mul (hidden, gate)")


@pytest.fixture
def quantized(tmp_path):
    def quantize(proto, data=None, target="tensorrt", **overrides):
        return skewed.quantized(
            tmp_path, "quantize_gelu", proto, tokens() if data is None else data, target, **overrides
        )

    return quantize


@pytest.mark.parametrize("target", ["tensorrt", "reference"])
@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_the_layer_behind_a_gelu_reads_codes_of_what_it_computes_and_no_other_does(quantized, text, target):
    result = quantized(mlp(text), target=target)
    assert list(shifted(result)) == ["active"]
    nodes = {node.op_type: node for node in result.model.graph.node}
    assert nodes["ShiftLogQuantizeLinear"].input[0] == "active"
    layer = next(node for node in result.model.graph.node if nodes["ShiftLogDequantizeLinear"].output[0] in node.input)
    assert shifted(result)["active"].consumers == [layer.name]
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.sqnr_db > 25


@pytest.mark.parametrize(
    "text",
    [SILU, *(ONE_NODE.replace("Gelu", other) for other in ("Sigmoid", "Softmax"))],
    ids=["SiLU", "Sigmoid", "Softmax"],
)
def test_other_functions_are_left_alone(quantized, text):
    result = quantized(mlp(text))
    assert not shifted(result)
    notes = {run.name: run.result.notes for run in result.report.runs}
    assert notes["quantize_gelu"] == ("no quantized layer reads a GELU",)


def test_a_gelu_that_no_quantized_layer_reads_is_left_alone(quantized):
    assert not shifted(quantized(mlp(), **{"quantize_linear_weights.exclude": '["MatMul_2"]'}))
    at_the_end = ONE_NODE.replace("active = Gelu (hidden)", "mixed = MatMul (hidden, second)").replace(
        "y = MatMul (active, second)", "y = Gelu (mixed)"
    )
    assert not shifted(quantized(mlp(at_the_end)))


@pytest.mark.parametrize(("option", "base"), [("2", 2), ('"2"', 2), ("sqrt2", 2**0.5)])
def test_with_a_given_base_the_shift_is_that_of_the_smallest_value_seen(quantized, option, base):
    quantizer = shifted(quantized(mlp(), **{"quantize_gelu.base": option}))["active"].quantizer
    assert quantizer.base == base
    assert quantizer.shift == pytest.approx(0.17, abs=1e-3)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("base", ["2", "sqrt2", "adaptive"])
def test_zero_stays_zero_and_no_level_is_far_outside_what_was_seen(quantized, base, bits):
    options = {"quantize_gelu.base": base, "quantize_gelu.bits": bits}
    quantizer = shifted(quantized(mlp(), **options))["active"].quantizer
    assert (quantizer.bits, quantizer.fake_quantize(np.zeros(1, np.float32))[0]) == (bits, 0)
    seen = tokens() @ onnx.numpy_helper.to_array(mlp().graph.initializer[0])
    assert -0.5 < quantizer.dequantize(np.array([quantizer.code_range[1]], np.float32))[0] <= 0
    assert quantizer.largest < 2 * seen.max()


@pytest.mark.parametrize("base", BASES)
def test_no_other_number_of_levels_above_zero_has_a_smaller_squared_error(quantized, base):
    data = np.repeat(tokens()[:1], 32, axis=0)
    quantizer = shifted(quantized(mlp(), data, **{"quantize_gelu.base": base, "quantize_gelu.bits": 4}))[
        "active"
    ].quantizer
    whole = onnx.ModelProto.FromString(mlp().SerializeToString())
    whole.graph.output.append(onnx.ValueInfoProto(name="active"))
    seen = run(whole, x=data)[-1]

    def error(each):
        return float(np.square(each.fake_quantize(seen) - seen).mean())

    others = [ShiftLogQuantizer.post_gelu(quantizer.shift, BASES[base], above, bits=4) for above in range(16)]
    assert error(quantizer) <= 1.02 * min(map(error, others))  # the pass sees a histogram


def test_the_errors_at_4_bits_are_those_that_the_quantizer_states():
    x = torch.nn.functional.gelu(1.5 * torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))).numpy()
    seen = Histogram()
    seen.update(x.min(1), x.max(1), x.mean(1), x)

    def error(quantizer):
        return np.linalg.norm(quantizer.fake_quantize(x) - x) / np.linalg.norm(x)

    def least(step):
        return min(error(each) for each in step.candidates("GELU", seen, "float32"))

    assert least(QuantizeGelu(bits=4, base="2")) == pytest.approx(0.22, abs=5e-3)
    assert least(QuantizeGelu(bits=4, base="sqrt2")) == pytest.approx(0.11, abs=5e-3)
    assert least(QuantizeGelu(bits=4)) == pytest.approx(0.063, abs=5e-4)
    assert least(QuantizeTwinUniform(bits=4)) == pytest.approx(0.12, abs=5e-3)
    low, high = find_range(seen, "mse", bits=4, symmetric=False)
    uniform = UniformQuantizer.from_range(np.array(low), np.array(high), bits=4, symmetric=False)
    assert error(uniform) == pytest.approx(0.097, abs=5e-4)


@pytest.mark.parametrize("base", ["2", "adaptive"])
def test_a_gelu_of_zeros_gets_levels_all_the_same(quantized, base):
    proto = parse(
        "g (float[N, 16, 8] x) => (float[N, 16, 8] y) { z = Mul (x, zero)\n a = Gelu (z)\n y = MatMul (a, w) }",
        20,
        zero=np.float32(0),
        w=np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32),
    )
    result = quantized(proto, **{"quantize_gelu.base": base})
    assert (run(result.model, x=tokens())[0] == 0).all()
    assert list(shifted(result)) == ["a"]


def test_the_report_names_base_largest_level_and_shift_and_knows_the_weight_behind(quantized):
    proto = mlp()
    result, held = quantized(proto, **{"quantize_gelu.base": "sqrt2"}), open_dataset(tokens(), input_specs(proto), None)
    rows = {row.entry.tensor: row for row in gather(proto, result, held).plan}
    row = rows["active"]
    assert rows["second"].sqnr_db > 30
    assert row.parameters.startswith("base 1.414, levels up to ")
    assert row.parameters.endswith(", around -0.17")
    assert row.chip.kind == "shift-log"


def test_the_plan_gives_the_same_bytes_without_data(quantized, tmp_path):
    decided = quantized(mlp())
    (tmp_path / "plan.json").write_text(decided.plan.to_json())
    plan = QuantizationPlan.from_json(tmp_path / "plan.json")
    assert rewrite(mlp(), plan=plan).model.SerializeToString() == decided.model.SerializeToString()


def test_a_base_that_there_is_not_is_refused(quantized):
    with pytest.raises(OnnxquantError, match=r"quantize_gelu: base: .*'2', 'sqrt2' or 'adaptive'"):
        quantized(mlp(), **{"quantize_gelu.base": "3"})


def test_ranges_must_be_measured(tmp_path):
    with pytest.raises(OnnxquantError, match=r"quantize_gelu: .*give data with --calib"):
        skewed.quantized(tmp_path, "quantize_gelu", mlp(), None, "tensorrt")


def test_tensorrt_builds_it(quantized):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    from onnxquant.deploy.build import build_engine

    for bits in (8, 4):
        result = quantized(mlp(SPELT_OUT), **{"quantize_gelu.bits": bits})
        assert build_engine(result.model, compute_capabilities=("8.6",)).plan


@pytest.mark.slow
def test_a_transformer_with_both_logarithmic_quantizers_builds_in_tensorrt(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    from onnxquant.deploy.build import build_engine

    data = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    steps = "quantize_gelu quantize_softmax_log"
    result = skewed.quantized(tmp_path, steps, load_fixture("deit_t", "torchscript"), data, "tensorrt")
    assert len(shifted(result)) == 24
    assert build_engine(result.model, compute_capabilities=("8.6",)).plan
