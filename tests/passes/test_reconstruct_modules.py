"""reconstruct_modules: roundings and scales that make attention and MLPs compute what they did."""

import numpy as np
import pytest

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from onnxquant.measure.metrics import sqnr_db
from onnxquant.plan import QuantizationPlan
from onnxquant.search.simulate import simulate_plan
from tests.fixtures import with_batch
from tests.graphs import attention, images, parse, run
from tests.passes.test_split_outliers import block, tokens

DECIDE = """
    [[pass]]
    name = "classify_blocks"
    [[pass]]
    name = "calibrate"
    [[pass]]
    name = "quantize_conv_weights"
    bits = 4
    [[pass]]
    name = "quantize_linear_weights"
    bits = 4
    [[pass]]
    name = "quantize_activations"
    bits = 6
"""

LEARN = """
    [[pass]]
    name = "reconstruct_modules"
    images = 16
"""


def rewritten(tmp_path, proto, data, *options, learn=LEARN, **more):
    path = tmp_path / "recipe.toml"
    path.write_text(DECIDE + learn)
    overrides = [f"reconstruct_modules.{option}" for option in options] if learn else []
    chosen = {"target": "reference", "min_sqnr": -np.inf, "samples": 64, "calibration": data, **more}
    return rewrite(proto, recipe=str(path), overrides=overrides, **chosen)


def notes(result):
    return next(run.result.notes for run in result.report.runs if run.name == "reconstruct_modules")


def learned(plan):
    return {entry.tensor for entry in plan.entries if entry.rounding and entry.rounding.mode == "learned"}


def test_attention_comes_closer_to_what_it_computed(tmp_path):
    plain = rewritten(tmp_path, attention(), images(128), learn="")
    result = rewritten(tmp_path, attention(), images(128), "iterations=60")
    assert learned(result.plan) == {"q_weight", "k_weight", "v_weight", "proj_weight"}  # not those of the convs
    mixed = [sqnr_db(logits(attention()), logits(each.model)) for each in (plain, result)]
    assert mixed[1] > mixed[0]
    (note,) = notes(result)
    before, after, soft = (float(text) for text in note.replace("(", "").split() if "e-" in text)
    assert after < 0.9 * before
    assert after == pytest.approx(soft, rel=0.2)
    entry = next(entry for entry in result.plan.entries if entry.tensor == "q_weight")
    assert "whose output error went from" in entry.why


def logits(proto):
    return np.log(run(proto, image=images(256, seed=5))[0])


def test_scales_of_activations_are_learned_with_the_roundings(tmp_path):
    entries = rewritten(tmp_path, attention(), images(), learn="").plan.entries
    found = rewritten(tmp_path, attention(), images(), "iterations=60", "scale_rate=1e-4").plan
    scales = {entry.tensor: entry.quantizer.scale for entry in found.entries if entry.role == "activation"}
    changed = {e.tensor for e in entries if e.role == "activation" and e.quantizer.scale != scales[e.tensor]}
    assert changed == {"tokens", "q", "kt", "probs", "v", "mixed"}
    still = rewritten(tmp_path, attention(), images(), "iterations=60", "scale_rate=0").plan
    assert {e.tensor: e.quantizer.scale for e in still.entries if e.role == "activation"} == {
        e.tensor: e.quantizer.scale for e in entries if e.role == "activation"
    }


def test_the_runtime_computes_what_was_learned(tmp_path):
    result, data = rewritten(tmp_path, attention(), images(), "iterations=60"), images(32, seed=7)
    expected = simulate_plan(attention(), result.plan).run({"image": data})["probabilities"].numpy()
    assert sqnr_db(expected, run(result.model, image=data)[0]) > 40


def test_a_plan_with_learned_roundings_is_applied_again_without_data(tmp_path):
    result = rewritten(tmp_path, attention(), images(), "iterations=10")
    path = tmp_path / "plan.json"
    path.write_text(result.plan.to_json())
    again = rewrite(attention(), plan=QuantizationPlan.from_json(path), min_sqnr=-np.inf)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_the_seed_decides(tmp_path):
    plans = [
        rewritten(tmp_path, attention(), images(), "iterations=10", f"seed={seed}").plan.to_json() for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_an_interrupted_run_goes_on_from_the_modules_that_are_done(tmp_path, monkeypatch):
    """Two attentions; the run is stopped in the second one."""
    from onnxquant.reconstruction.reconstruct import Reconstruction
    from onnxquant.search import checkpoint

    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    proto, data, state = block(), tokens(), tmp_path / "state.json"  # attention and an MLP: two modules
    whole = rewritten(tmp_path, proto, data, "iterations=10").plan.to_json()
    descend, names = Reconstruction._descend, []

    def stopping(self, module, *rest):
        names.append(module.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return descend(self, module, *rest)

    monkeypatch.setattr(Reconstruction, "_descend", stopping)
    with pytest.raises(KeyboardInterrupt):
        rewritten(tmp_path, proto, data, "iterations=10", f"resume='{state}'")
    assert state.exists()
    resumed = rewritten(tmp_path, proto, data, "iterations=10", f"resume='{state}'").plan.to_json()
    assert resumed == whole
    assert len(names) == 3
    assert names[1] == names[2]  # only the second module was learned again
    assert not state.exists()


def test_without_attention_or_mlp_it_says_so(tmp_path):
    proto = parse("model (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=np.eye(4, dtype=np.float32))
    data = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    result = rewritten(tmp_path, proto, data, "iterations=10")
    assert notes(result) == ("nothing to learn: no part of the graph has quantized weights left",)
    assert not learned(result.plan)


def test_without_data_it_says_what_to_do(tmp_path):
    weights = '[[pass]]\nname = "classify_blocks"\n[[pass]]\nname = "quantize_linear_weights"\n' + LEARN
    path = tmp_path / "recipe.toml"
    path.write_text(weights)
    with pytest.raises(OnnxquantError, match=r"reconstruct_modules: learning needs data; give some with --calib"):
        rewrite(attention(), recipe=str(path))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_with_a_fixed_batch_learns_from_as_many_images(tmp_path, batch):
    result = rewritten(tmp_path, with_batch(attention(), batch), images(), "iterations=60", samples=8)
    assert learned(result.plan) == {"q_weight", "k_weight", "v_weight", "proj_weight"}
