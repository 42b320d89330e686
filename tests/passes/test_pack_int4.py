"""pack_int4: weights of 4 bits are int4 in the file where a layer computes with them in float, and int8 elsewhere."""

import numpy as np
import onnx
import pytest
from onnxquant.passes.pack_int4 import PackInt4

from onnxquant import rewrite
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.targets import load_target
from tests.graphs import attention, images, parse, run

INT4, INT8 = onnx.TensorProto.INT4, onnx.TensorProto.INT8


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def quantized(proto, data, tmp_path, target="tensorrt", bits=4, activations="", **options):
    """Rewrite with every weight in `bits` bits, and activations in the blocks named."""
    recipe = tmp_path / "recipe.toml"
    names = ["classify_blocks", "calibrate", "quantize_conv_weights", "quantize_linear_weights"]
    lines = [f'[[pass]]\nname = "{name}"\n' + (f"bits = {bits}\n" if "weights" in name else "") for name in names]
    lines += [f'[[pass]]\nname = "quantize_activations"\nblocks = {activations}\n'] if activations else []
    recipe.write_text("".join(lines))
    return rewrite(proto, recipe=str(recipe), calibration=data, target=target, min_sqnr=-99, **options)


def stored(result):
    """Types of the initializers that hold codes, by the weight's name."""
    types = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    return {name.rsplit("_", 1)[0]: kind for name, kind in types.items() if name.endswith(("_quantized", "_int4"))}


def said(result):
    return next(run.result.notes for run in result.report.runs if run.name == "pack_int4")


@pytest.mark.parametrize("opset", [17, 20, 22])
def test_weights_of_4_bits_are_int4_and_compute_the_same(tmp_path, opset):
    proto = attention(opset)
    result, as_int8 = (quantized(proto, images(), tmp_path, target) for target in ("tensorrt", "portable"))
    assert set(stored(result).values()) == {INT4}
    assert set(stored(as_int8).values()) == {INT8}
    np.testing.assert_allclose(run(result.model, image=images())[0], run(as_int8.model, image=images())[0], atol=1e-4)
    sizes = [sum(map(len, (t.raw_data for t in each.model.graph.initializer))) for each in (result, as_int8)]
    assert sizes[0] < sizes[1]
    assert result.model.opset_import[0].version == max(opset, 21)
    assert said(result)[0].startswith("7 weights to int4")


def test_the_report_says_what_is_stored_how(tmp_path):
    for bits, how in ((4, "stored in int4"), (3, "emulated: stored in 4"), (5, "emulated: stored in 8")):
        result = quantized(attention(), images(), tmp_path, bits=bits)
        assert result.report.quantized == {f"weight, uniform {bits} bit ({how})": 7}


@pytest.mark.parametrize("target", ["onnxruntime", "reference", "portable", "tensorrt-8.6"])
def test_other_targets_keep_int8(tmp_path, target):
    result = quantized(attention(), images(), tmp_path, target)
    assert INT4 not in {tensor.data_type for tensor in result.model.graph.initializer}
    assert result.report.quantized == {"weight, uniform 4 bit (emulated: stored in 8)": 7}
    assert said(result) == (f"target {target} takes weights of 4 bits in int8",)


def test_weights_of_5_bits_keep_int8(tmp_path):
    result = quantized(attention(), images(), tmp_path, bits=5)
    assert set(stored(result).values()) == {INT8}
    assert said(result) == ("no weight has 4 bits or fewer",)


def test_a_layer_that_reads_quantized_activations_keeps_int8(tmp_path):
    result = quantized(attention(), images(), tmp_path, activations='["conv"]')
    assert stored(result)["stem_weight"] == INT8
    assert stored(result)["q_weight"] == INT4
    assert said(result)[1] == "2 stay int8: their layer reads quantized activations, or their size is odd"
    assert result.report.quantized["weight, uniform 4 bit (emulated: stored in 8)"] == 2


def packed(text, codes):
    """Run the pass on a graph whose weight `w` is `codes` already; the result and the model."""
    proto = parse(text, w_quantized=codes, s=np.float32(0.1), zero=np.int8(0))
    quantizer = UniformQuantizer.from_range(np.array(-1.0), np.array(1.0), bits=4, symmetric=True)
    plan = QuantizationPlan(entries=[PlanEntry(tensor="w", role="weight", quantizer=quantizer)])
    model = load(proto)
    context = PassContext(model, load_target("tensorrt"), plan, dequantized={"w": ["w_dequantized"]})
    result = PackInt4().run(model.graph, context)
    return result, model.to_proto()


@pytest.mark.parametrize("moving", ["Transpose <perm = [0, 2, 1]>", "Relu", "MaxPool <kernel_shape = [3]>"])
@pytest.mark.parametrize("dequantized", [True, False])
def test_so_does_one_behind_a_node_that_a_dequantization_may_be_moved_across(moving, dequantized):
    text = f"""g (float[N, 6, 6] i) => (float[N, M, 8] y) {{
        c = QuantizeLinear (i, s, zero)
        x = {"DequantizeLinear (c, s, zero)" if dequantized else "Cast <to = 1> (c)"}
        moved = {moving} (x)
        w_dequantized = DequantizeLinear (w_quantized, s, zero)
        y = MatMul (moved, w_dequantized)
    }}"""
    result, _ = packed(
        text, np.ones((6, 8), np.int8) if moving != "MaxPool <kernel_shape = [3]>" else np.ones((4, 8), np.int8)
    )
    assert result.modified != dequantized


LINEAR = """g (float[N, 3] x) => (float[N, M] y) {
    w_dequantized = DequantizeLinear (w_quantized, s, zero)
    y = MatMul (x, w_dequantized)
}"""

FLATTENED = LINEAR.replace("y = MatMul (x, w_dequantized)", "w = Flatten (w_dequantized)\n y = MatMul (x, w)")


@pytest.mark.parametrize(
    ("codes", "fits"),
    [([-8, 7], True), ([-9, 7], False), ([-8, 8], False), ([1, 2, 3], False)],
    ids=["all of int4", "below it", "above it", "an odd number"],
)
@pytest.mark.parametrize("text", [LINEAR, FLATTENED], ids=["read", "flattened"])
def test_codes_that_are_not_int4_two_a_byte_stay_int8(text, codes, fits):
    codes = np.array([codes, codes, codes], np.int8)
    result, model = packed(text, codes)
    assert result.modified == fits
    assert (INT4 in {tensor.data_type for tensor in model.graph.initializer}) == fits
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], codes * np.float32(0.1), rtol=0.02)


def test_an_opset_that_can_not_be_raised_keeps_int8():
    inner = "then_branch = t () => (float[N, M] u) { u = Identity (p) }"
    other = "else_branch = e () => (float[N, M] v) { v = Neg (p) }"
    text = LINEAR.replace("y = MatMul", "p = MatMul").replace(
        "\n}", f"\n positive = Cast <to = 9> (s)\n y = If <{inner}, {other}> (positive)\n}}"
    )
    result, model = packed(text, np.ones((3, 2), np.int8))
    assert not result.modified
    assert result.notes == ("all stay int8: opset 17 can't be raised to 21 (functions and subgraphs aren't converted)",)
    assert model.opset_import[0].version == 17


def test_functions_of_quantizers_are_raised_with_the_graph():
    options = ["quantize_conv_weights.bits=4"]
    result = rewrite(attention(), calibration=images(), target="tensorrt", overrides=options, min_sqnr=0)
    assert {entry.version for f in result.model.functions for entry in f.opset_import if not entry.domain} == {21}
    assert set(stored(result).values()) == {INT4}
    before = rewrite(attention(), calibration=images(), target="portable", overrides=options, min_sqnr=0)
    assert len(result.model.functions) == len(before.model.functions) == 2
    np.testing.assert_array_equal(run(result.model, image=images())[0], run(before.model, image=images())[0])


def test_float16_around_them(tmp_path):
    result = quantized(attention(), images(), tmp_path, float_type="fp16")
    assert set(stored(result).values()) == {INT4}
    assert result.report.sqnr_db > 10


def test_equal_weights_are_shared_still(tmp_path):
    w = normal(4, 4)
    proto = parse("g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) \n y = MatMul (a, v) }", w=w, v=w)
    result = quantized(proto, normal(8, 4), tmp_path)
    assert len(stored(result)) == 1
    assert said(result)[0].startswith("2 weights to int4")


def test_a_saved_plan_gives_the_same_bytes_and_for_another_target_int8(tmp_path):
    decided = quantized(attention(), images(), tmp_path)
    saved = tmp_path / "plan.json"
    saved.write_text(decided.plan.to_json())
    again = rewrite(attention(), plan=QuantizationPlan.from_json(saved))
    assert again.model.SerializeToString(deterministic=True) == decided.model.SerializeToString(deterministic=True)
    portable = rewrite(attention(), plan=QuantizationPlan.from_json(saved), target="portable")
    assert set(stored(portable).values()) == {INT8}
    assert portable.report.quantized == {"weight, uniform 4 bit (emulated: stored in 8)": 7}


@pytest.mark.parametrize("name", ["hidden", "w_dequantized"])
def test_a_tensor_of_the_model_may_have_the_name_that_a_dequantized_weight_gets(tmp_path, name):
    text = f"g (float[N, 6] x) => (float[N, 8] y) {{ {name} = Relu (x)\n y = MatMul ({name}, w) }}"
    proto = parse(text, w=np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32))
    result = quantized(proto, np.ones((8, 6), np.float32), tmp_path)
    assert stored(result)["w"] == INT4
