"""What qkv and fc1 read of a LayerNormalization is quantized by token, with its outliers in float; nothing else is."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnxquant.passes.classify_blocks import ClassifyBlocks
from onnxquant.passes.split_outliers import SplitOutliers

from onnxquant import rewrite
from onnxquant.calibration.token_histogram import TokenHistogram
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.observation import calibrate
from onnxquant.pass_manager import PassContext
from onnxquant.pipeline import canonicalise
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.targets import load_target
from tests.fixtures import load_fixture
from tests.graphs import initializers, op_types, parse, run

BLOCK = """
    block (float[N, 16, 8] x) => (float[N, 16, 8] y) {
        embedded = MatMul (x, w_embed)
        normed = LayerNormalization <axis = -1> (embedded, gamma, beta)
        q = MatMul (normed, w_q)
        k = MatMul (normed, w_k)
        v = MatMul (normed, w_v)
        kt = Transpose <perm = [0, 2, 1]> (k)
        scores = MatMul (q, kt)
        probs = Softmax <axis = -1> (scores)
        mixed = MatMul (probs, v)
        attended = MatMul (mixed, w_proj)
        middle = Add (attended, embedded)
        again = LayerNormalization <axis = -1> (middle, gamma, beta)
        hidden = MatMul (again, w_fc1)
        active = Gelu (hidden)
        back = MatMul (active, w_fc2)
        last = Add (back, middle)
        final = LayerNormalization <axis = -1> (last, gamma, beta)
        y = MatMul (final, w_head)
    }
"""

RECIPE = """
    [[pass]]
    name = "classify_blocks"
    [[pass]]
    name = "calibrate"
    [[pass]]
    name = "quantize_linear_weights"
    scheme = "symmetric"
    [[pass]]
    name = "split_outliers"
    [[pass]]
    name = "quantize_activations"
"""


def block(text=BLOCK):
    """A transformer block and a head; one channel of what the norms compute is four times as large as the others."""
    rng = np.random.default_rng(0)
    weights = {f"w_{name}": rng.standard_normal((8, 8)) / 3 for name in ("embed", "q", "k", "v", "proj", "head")}
    weights |= {"w_fc1": rng.standard_normal((8, 32)) / 3, "w_fc2": rng.standard_normal((32, 8)) / 6}
    norm = {"gamma": np.array([1, 1, 1, 4, 1, 1, 1, 1]), "beta": np.full(8, 0.1)}
    named = {name: values.astype(np.float32) for name, values in (weights | norm).items() if name in text}
    return parse(text, 20, **named)


def tokens(count=32):
    return np.random.default_rng(3).standard_normal((count, 16, 8)).astype(np.float32)


@pytest.fixture
def quantized(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)

    def with_options(proto, data=None, target="tensorrt", **options):
        return rewrite(
            proto,
            recipe=str(tmp_path / "recipe.toml"),
            calibration=tokens() if data is None else data,
            target=target,
            overrides=[f"split_outliers.{option}={value}" for option, value in {"share": 0.05, **options}.items()],
            samples=16,
            min_sqnr=-np.inf,
        )

    return with_options


def found(result):
    return {e.tensor: e for e in result.plan.entries if isinstance(e.quantizer, PerTokenQuantizer)}


def products_of(proto, path):
    """Operators that ONNX Runtime multiplies with, after its own optimisation."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [op for op in op_types(onnx.load(path)) if "MatMul" in op]


@pytest.mark.parametrize("target", ["tensorrt", "reference"])
def test_qkv_and_fc1_read_their_norm_by_token_and_no_other_layer_does(quantized, target):
    result = quantized(block(), target=target)
    writers = {node.name: node.output[0] for node in result.model.graph.node}
    read = {tensor: len(entry.consumers) for tensor, entry in found(result).items()}
    assert read == {"normed": 3, "again": 1}
    uniform = {e.tensor for e in result.plan.entries if e.role == "activation"} - set(read)
    assert uniform == {"x", "q", "kt", "probs", "v", "mixed", "active", "final"}
    assert {writers[name] for name in found(result)["again"].consumers} == {"hidden_of_codes"}
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.sqnr_db > 15  # of 16 samples of 8 channels


def test_the_runtime_multiplies_the_codes_and_the_outliers_as_they_are(quantized):
    result = quantized(block(), bits=4, target="reference")
    quantizer = found(result)["normed"].quantizer
    whole = onnx.ModelProto.FromString(result.model.SerializeToString())
    for name in ("normed", "normed_outliers", "q"):
        whole.graph.output.append(onnx.ValueInfoProto(name=name))
    _, normed, outliers, product = run(whole, x=tokens(4))
    large = np.abs(normed) >= np.float32(quantizer.threshold)
    assert 0.01 < large.mean() < 0.2
    np.testing.assert_array_equal(outliers, np.where(large, normed, 0))
    stored = initializers(result.model)
    weight = stored["w_q_quantized"] * stored["w_q_scale"]
    np.testing.assert_allclose(product, quantizer.fake_quantize(normed) @ weight, rtol=1e-5, atol=1e-5)


def test_the_codes_are_multiplied_on_integers_and_only_the_outliers_in_float(quantized, tmp_path):
    products = products_of(quantized(block(), target="reference").model, tmp_path / "optimised.onnx")
    assert products.count("MatMul") == 4
    assert len(products) == 4 + 10


def test_where_calibration_saw_no_outlier_none_is_looked_for(quantized):
    result = quantized(block(), threshold="fixed", qkv=1.0, fc1=1000.0)
    assert {name: entry.quantizer.threshold for name, entry in found(result).items()} == {"normed": 1.0, "again": None}
    assert op_types(result.model).count("Where") == 2


def test_by_default_at_most_a_share_of_the_values_are_outliers(quantized):
    whole = block()
    whole.graph.output.append(onnx.ValueInfoProto(name="normed"))
    normed = np.abs(run(whole, x=tokens())[-1])
    for share in (0.005, 0.05):
        threshold = found(quantized(block(), np.repeat(tokens(), 2, axis=0), share=share))["normed"].quantizer.threshold
        assert 0 < (normed >= threshold).mean() <= 1.5 * share  # half of them calibrate


def test_each_token_has_a_scale_of_its_own(quantized):
    scale = found(quantized(block()))["normed"].quantizer.scale
    assert scale.shape == (16,)
    assert len(set(scale.tolist())) > 4


def test_scales_are_computed_at_run_time_where_the_number_of_tokens_is_not_known(quantized):
    text = BLOCK.replace("N, 16, 8", "N, T, 8")
    result = quantized(block(text))
    assert all(entry.quantizer.scale is None for entry in found(result).values())
    assert op_types(result.model).count("ReduceMax") == 2
    for count in (16, 5):
        assert np.isfinite(run(result.model, x=tokens()[:, :count])[0]).all()
    with pytest.raises(OnnxquantError, match=r"tensor normed has no constant number of tokens; set scales=auto"):
        quantized(block(text), scales="static")


def test_without_data_thresholds_must_be_fixed_and_scales_are_computed_at_run_time():
    def decide(**options):
        model = load(block())
        canonicalise(model)
        context = PassContext(model, load_target("reference"))
        ClassifyBlocks().run(model.graph, context)
        for weight in [f"w_{name}" for name in ("q", "k", "v", "fc1")]:
            entry = {"tensor": weight, "role": "weight"}
            uniform = {"kind": "uniform", "bits": 8, "signed": True, "scale": 0.1, "zero_point": 0}
            context.plan.add(PlanEntry.model_validate({**entry, "quantizer": uniform}))
        result = SplitOutliers(**options).run(model.graph, context)
        return result.notes, {e.tensor: e.quantizer for e in context.plan.entries if e.role == "activation"}

    notes, quantizers = decide(threshold="fixed")
    assert {name: (each.scale, each.threshold) for name, each in quantizers.items()} == {
        "normed": (None, 5.0),
        "again": (None, 10.0),
    }
    assert notes[-1] == "2 with scales computed at run time"
    for options in ({}, {"threshold": "fixed", "scales": "static"}):
        with pytest.raises(OnnxquantError, match=r"split_outliers: .*give data with --calib, or set threshold=fixed"):
            decide(**options)


def test_layers_that_read_no_norm_directly_are_left_alone(quantized):
    text = BLOCK.replace("LayerNormalization <axis = -1> (embedded, gamma, beta)", "Relu (embedded)")
    assert list(found(quantized(block(text)))) == ["again"]


def test_a_float_layer_is_left_alone(tmp_path, quantized):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace('"symmetric"', '"symmetric"\n    exclude = ["fc1"]'))
    proto = block()
    next(node for node in proto.graph.node if node.output[0] == "hidden").name = "fc1"
    assert list(found(quantized(proto))) == ["normed"]


@pytest.mark.parametrize("exporter", ["dynamo", pytest.param("torchscript", marks=pytest.mark.slow)])
def test_every_qkv_and_fc1_of_a_swin_is_found_behind_windows_and_shifts(exporter):
    model = load(load_fixture("swin_t", exporter))
    canonicalise(model)
    context = PassContext(model, load_target("reference"))
    ClassifyBlocks().run(model.graph, context)
    wanted = list(SplitOutliers().observes(model.graph, context))
    tensors, kinds = model.graph.tensors(), []
    for name, observer in wanted:
        assert observer is TokenHistogram
        kinds += [context.blocks.of(node).kind for node in tensors[name].outputs if node.op == "MatMul"]
    assert sorted(kinds) == ["attention"] * 12 + ["mlp"] * 12


def test_the_plan_and_the_ranges_give_the_same_bytes_without_data(quantized, tmp_path):
    decided = quantized(block(), bits=4)
    (tmp_path / "plan.json").write_text(decided.plan.to_json())
    plan = QuantizationPlan.from_json(tmp_path / "plan.json")
    assert rewrite(block(), plan=plan).model.SerializeToString() == decided.model.SerializeToString()
    options = {"recipe": str(tmp_path / "recipe.toml"), "target": "tensorrt"}
    overrides = ["split_outliers.share=0.05", "split_outliers.bits=4"]
    ranges = calibrate(block(), tokens(), overrides=overrides, samples=16, **options)
    again = rewrite(block(), ranges=ranges, overrides=overrides, min_sqnr=-np.inf, **options)
    assert again.model.SerializeToString() == decided.model.SerializeToString()


@pytest.mark.parametrize(
    ("tensor", "scale", "said"),
    [
        ("normed", np.ones(15), r"tensor normed of shape .* can't have scales of shape \(15,\) by token"),
        ("normed", np.ones((4, 4)), r"tensor normed of shape .* can't have scales of shape \(4, 4\) by token"),
        ("kt", None, r"tensor kt has scales by token, but \w+ isn't its MatMul by a constant matrix"),
        ("hidden", np.ones(16), r"tensor hidden has scales by token, but \w+ isn't its MatMul by a constant matrix"),
    ],
)
def test_an_entry_that_does_not_fit_the_graph_is_named(tensor, scale, said):
    entry = PlanEntry(tensor=tensor, role="activation", quantizer=PerTokenQuantizer(8, scale))
    with pytest.raises(OnnxquantError, match=said):
        rewrite(block(), plan=QuantizationPlan(entries=[entry]))


def test_a_gemm_is_no_place_for_scales_by_token():
    proto = parse("g (float[N, 4] x) => (float[N, 4] y) { p = Relu (x)\n y = Gemm (p, w) }", w=np.ones((4, 4), "f4"))
    entry = PlanEntry(tensor="p", role="activation", quantizer=PerTokenQuantizer(8))
    with pytest.raises(OnnxquantError, match="tensor p has scales by token, but Gemm_1 isn't its MatMul"):
        rewrite(proto, plan=QuantizationPlan(entries=[entry]))


def test_alone_in_a_pipeline_it_says_that_no_layer_is_quantized(caplog):
    caplog.set_level("INFO")
    graph = SplitOutliers()(gs.import_onnx(block()), calibration=tokens(), target="reference")
    assert "QuantizeLinear" not in {node.op for node in graph.nodes}
    assert "split_outliers: no quantized MatMul of an attention or MLP block reads a LayerNormalization" in caplog.text


@pytest.mark.parametrize("float_type", ["fp32", "fp16"])
@pytest.mark.parametrize("options", [{"bits": 8}, {"bits": 4, "scales": "dynamic"}])
def test_tensorrt_builds_it(quantized, tmp_path, options, float_type):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    from onnxquant.deploy.build import build_engine

    plan = quantized(block(), **options).plan
    result = rewrite(block(), plan=plan, calibration=tokens(), float_type=float_type, min_sqnr=15)
    assert build_engine(result.model, compute_capabilities=("8.6",)).plan
