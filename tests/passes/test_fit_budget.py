"""A budget: the fewest tensors stay in float that bring the runtime's result within it; the plan says which."""

import numpy as np
import pytest

from onnxquant import rewrite
from onnxquant.errors import AccuracyError, BudgetError, OnnxquantError
from onnxquant.measure.latency import Latency
from onnxquant.plan import QuantizationPlan
from tests.graphs import op_types, parse, run

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    """What a test draws doesn't depend on those that ran before it."""
    monkeypatch.setattr(f"{__name__}.RNG", np.random.default_rng(0))


THREE = """
    model (float[N, 8, 6, 6] image) => (float[N, 8, 6, 6] y) {
        a = Conv <kernel_shape = [1, 1]> (image, first)
        gate = Sigmoid (a)
        silu = Mul (a, gate)
        b = Conv <kernel_shape = [1, 1]> (silu, second)
        clipped = Clip (b, low, high)
        y = Conv <kernel_shape = [1, 1]> (clipped, third)
    }
"""


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def three():
    """Three layers; one channel of what the second reads is a hundred times the others', which keep few codes."""
    first, second, third = (normal(8, 8, 1, 1) for _ in range(3))
    first[0] *= 100
    second[:, 0] /= 100
    return parse(THREE, first=first, second=second, third=third, low=np.float32(-50), high=np.float32(50))


MODEL, DATA = three(), normal(24, 8, 6, 6)


def w8a8(proto=MODEL, data=DATA, target="tensorrt", **options):
    return rewrite(proto, recipe="w8a8", calibration=data, target=target, **options)


def quantized(result):
    return {entry.tensor for entry in result.plan.entries}


def test_the_tensor_that_costs_most_stays_in_float_and_the_plan_says_why():
    before = w8a8(min_sqnr=-np.inf)
    after = w8a8(min_sqnr=before.report.sqnr_db + 6)
    assert after.report.sqnr_db >= before.report.sqnr_db + 6
    assert quantized(before) - quantized(after) == {"silu"}
    assert after.report.exempt.keys() == {"silu"}
    assert "of the noise when quantized alone (--min-sqnr" in after.report.exempt["silu"]
    assert any("1 of 6 tensors left in float" in note for run in after.report.runs for note in run.result.notes)


def test_a_budget_that_is_met_changes_nothing():
    before = w8a8(min_sqnr=-np.inf)
    after = w8a8(min_sqnr=before.report.sqnr_db - 1)
    assert after.plan.to_json() == before.plan.to_json()
    assert after.report.exempt == {}


def test_the_plan_alone_gives_the_same_model_again(tmp_path):
    result = w8a8(min_sqnr=w8a8(min_sqnr=-np.inf).report.sqnr_db + 6)
    (tmp_path / "plan.json").write_text(result.plan.to_json())
    again = rewrite(MODEL, plan=QuantizationPlan.from_json(tmp_path / "plan.json"))
    assert again.model == result.model
    assert again.report.exempt == result.report.exempt


def test_a_layer_whose_weight_stays_in_float_reads_no_codes():
    result = w8a8(min_sqnr=45)
    weights = {entry.node for entry in result.plan.entries if entry.role == "weight"}
    assert 0 < len(weights) < 3
    for entry in result.plan.entries:
        assert entry.role == "weight" or weights.issuperset(entry.consumers)
    assert len(result.report.exempt) + len(result.plan.entries) == 6


def test_few_bits_are_raised_before_anything_stays_in_float():
    low = {"overrides": ("quantize_conv_weights.bits=3",)}
    before, full = w8a8(min_sqnr=-np.inf, **low), w8a8(min_sqnr=-np.inf)
    wanted = (before.report.sqnr_db + full.report.sqnr_db) / 2
    after = w8a8(min_sqnr=wanted, **low)
    bits = {entry.tensor: entry.quantizer.bits for entry in after.plan.entries if entry.role == "weight"}
    assert after.report.sqnr_db >= wanted > before.report.sqnr_db
    assert sorted(bits.values()) in ([3, 3, 8], [3, 8, 8])
    assert after.report.exempt == {}


def test_where_8_bits_are_too_few_tensors_stay_in_float():
    full = w8a8(min_sqnr=-np.inf).report.sqnr_db
    after = w8a8(min_sqnr=full + 6, overrides=("quantize_conv_weights.bits=3",))
    assert after.report.sqnr_db >= full + 6
    assert "silu" in after.report.exempt


def test_a_budget_beyond_reach_is_an_error_that_says_what_came_nearest():
    nearest = r"--min-sqnr 250 can't be reached; the best is \d+\.\d dB, with all but 1 of 6 tensors left in float"
    with pytest.raises(BudgetError, match=nearest):
        w8a8(min_sqnr=250)


def classifier():
    text = """
        model (float[N, 4, 6, 6] image) => (float[N, 10] logits) {
            a = Conv <kernel_shape = [3, 3]> (image, kernel)
            b = Relu (a)
            flat = Flatten (b)
            logits = Gemm <transB = 1> (flat, weight)
        }
    """
    rng = np.random.default_rng(3)
    kernel, weight = rng.standard_normal((8, 4, 3, 3)), rng.standard_normal((10, 128))
    return parse(text, kernel=kernel.astype(np.float32), weight=weight.astype(np.float32))


def labelled(count):
    """Images for the classifier, with the classes that it gives them itself."""
    image = np.random.default_rng(4).standard_normal((count, 4, 6, 6)).astype(np.float32)
    return {"image": image, "labels": run(classifier(), image=image)[0].argmax(1)}


COARSE = {"samples": 8, "overrides": ("quantize_conv_weights.bits=2", "quantize_activations.bits=3")}


def test_a_limit_on_the_drop_holds_on_all_samples_that_calibration_does_not_see():
    before = w8a8(classifier(), labelled(108), min_sqnr=-np.inf, max_drop=0.9, **COARSE)
    assert before.report.judgement.accuracy[1].top1 < 0.9, "as it comes it loses too much"
    result = w8a8(classifier(), labelled(108), min_sqnr=-np.inf, max_drop=0.05, **COARSE)
    original, rewritten = result.report.judgement.accuracy
    assert original.samples == 100
    assert original.top1 == 1
    assert rewritten.top1 >= 0.95
    assert any(entry.quantizer.bits == 8 for entry in result.plan.entries)


@pytest.mark.parametrize(
    ("data", "drop", "said"),
    [
        (labelled(40), 0.01, "can't tell a drop of 1% in top-1 accuracy; give at least 100"),
        ({"image": labelled(40)["image"]}, 0.1, "has no labels"),
        (None, 0.1, "--max-drop 10%: the result is judged on data; give some with --calib"),
    ],
)
def test_a_drop_needs_data_that_shows_it(data, drop, said):
    with pytest.raises(OnnxquantError, match=said):
        rewrite(classifier(), calibration=data, samples=8, max_drop=drop)


def test_a_plan_that_drops_more_is_refused():
    data = labelled(108)
    plan = w8a8(classifier(), data, min_sqnr=-np.inf, **COARSE).plan
    with pytest.raises(AccuracyError, match=r"points below the original's 100\.00% on 100 samples \(--max-drop 5%\)"):
        rewrite(classifier(), plan=plan, calibration=data, samples=8, min_sqnr=-np.inf, max_drop=0.05)


def per_node(original, rewritten, data, name):
    """As if ONNX Runtime took 1 ms for a Conv in float, a half in integers, and a third to dequantize or quantize."""
    cost = {"Conv": 0.5, "QuantizeLinear": 0.3, "DequantizeLinear": 0.3}
    seconds = sum(cost.get(op, 0) for op in op_types(rewritten))
    floats = [n for n in rewritten.graph.node if n.op_type == "Conv" and "dequantized" not in n.input[1].lower()]
    return Latency(3, seconds, (seconds + len(floats) * 0.5) / 3)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("onnxquant.passes.fit_budget.compare_latency", per_node)
    monkeypatch.setattr("onnxquant.gate.compare_latency", per_node)


def wide():
    """Enough work that all layers are put on integers; the first does least for each value it moves."""
    widths = [(32, 64), (64, 64), (64, 128), (128, 128)]
    text = """
        model (float[N, 32, 4, 4] image) => (float[N, 128, 4, 4] d) {
            a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w0)
            b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, w1)
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2)
            d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c, w3)
        }
    """
    return parse(text, **{f"w{i}": normal(m, n, 3, 3) / 20 for i, (n, m) in enumerate(widths)})


def test_for_speed_the_layers_that_gain_least_stay_in_float(clock):
    decided = w8a8(wide(), normal(8, 32, 4, 4), "onnxruntime", min_sqnr=-np.inf)
    speed = 1 / decided.report.judgement.latency.ratio
    result = w8a8(wide(), normal(8, 32, 4, 4), "onnxruntime", min_sqnr=-np.inf, min_speedup=speed * 1.01)
    assert 1 / result.report.judgement.latency.ratio > speed
    assert "w0" in result.report.exempt
    assert "w3" not in result.report.exempt
    assert "gains too little from integers (--min-speedup" in result.report.exempt["w0"]


def test_speed_beyond_reach_is_an_error_that_says_what_came_nearest(clock):
    with pytest.raises(BudgetError, match=r"--min-speedup 9 can't be reached on this machine; the best is \d\.\d\d"):
        w8a8(wide(), normal(8, 32, 4, 4), "onnxruntime", min_speedup=9)


def test_the_real_clock_says_how_fast_integers_are():
    latency = w8a8(wide(), normal(8, 32, 4, 4), "onnxruntime", min_sqnr=-np.inf).report.judgement.latency
    assert latency.original > 0
    assert latency.rewritten > 0
    assert 0.01 < latency.ratio < 100
    floats = rewrite(wide(), calibration=normal(8, 32, 4, 4), recipe="weights-only").report.judgement
    assert floats.latency is None, "no speed is promised where nothing computes on integers"


def test_speed_is_no_budget_for_another_runtime():
    with pytest.raises(OnnxquantError, match="--min-speedup 1: measured in ONNX Runtime, which target tensorrt isn't"):
        w8a8(min_speedup=1)
