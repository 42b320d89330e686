"""search_scales: each quantizer becomes the one that the loss minds least, within what the target takes."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from tests.graphs import attention, images, parse

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    """What a test draws doesn't depend on those that ran before it."""
    monkeypatch.setattr(f"{__name__}.RNG", np.random.default_rng(0))


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def search(proto, data, target="tensorrt", **options):
    chosen = {"candidates": 50, "rounds": 1, **options}
    overrides = tuple(f"search_scales.{name}={value}" for name, value in chosen.items())
    return rewrite(
        proto, recipe="q-hyvit", calibration=data, target=target, overrides=overrides, min_sqnr=-np.inf, samples=16
    )


def entry(result, tensor):
    return next(entry for entry in result.plan.entries if entry.tensor == tensor)


def note(result):
    return next("; ".join(run.result.notes) for run in result.report.runs if run.name == "search_scales")


LINEAR = "model (float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }"

CONVOLUTIONS = """
    model (float[N, 4, 8, 8] image) => (float[N, 6, 8, 8] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, first, bias)
        gate = Sigmoid (a)
        silu = Mul (a, gate)
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (silu, second)
    }
"""


def convolutions():
    first = normal(8, 4, 3, 3) * np.linspace(0.05, 2, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    return parse(CONVOLUTIONS, first=first, bias=normal(8), second=normal(6, 8, 3, 3))


def test_an_outlier_is_clipped_where_that_costs_less_than_coarse_steps():
    x = normal(400, 8)
    x[:, 0] /= 100
    x[7, 0] = 30.0  # meets a small weight
    weight = normal(8, 4)
    weight[0] /= 100
    few = {"samples": 400, "overrides": ("quantize_activations.bits=4",), "target": "tensorrt", "min_sqnr": -np.inf}
    searched = rewrite(parse(LINEAR, w=weight), recipe="q-hyvit", calibration=x, **few)
    plain = rewrite(parse(LINEAR, w=weight), recipe="minmax", calibration=x, **few)
    assert entry(plain, "x").quantizer.scale * 7 == pytest.approx(30)
    assert entry(searched, "x").quantizer.scale * 7 < 10


def test_errors_count_where_the_loss_minds_them():
    """The second class is always far behind: its logit's error changes nothing, and its weights may be coarse."""
    weight = normal(8, 3)
    text = "model (float[N, 8] x) => (float[N, 3] y) { z = MatMul (x, w) y = Add (z, far) }"
    coarse = {"granularity": '["layer"]', "schemes": '["symmetric"]'}
    weight[:, 1] *= 20
    proto = parse(text, w=weight, far=np.array([0, -400, 0], np.float32))
    steps = {
        metric: float(entry(search(proto, normal(32, 8), metric=metric, **coarse), "w").quantizer.scale)
        for metric in ("hessian", "mse")
    }
    assert steps["hessian"] < steps["mse"] / 2


@pytest.mark.parametrize(
    ("target", "unsigned", "shifted"),
    [("onnxruntime", True, False), ("tensorrt", False, True), ("portable", False, True)],
)
def test_skewed_activations_get_a_zero_point_or_a_shift_where_there_is_none(target, unsigned, shifted):
    text = "model (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }"
    result = search(parse(text, w=normal(64, 64)), np.abs(normal(32, 64)) + 3, target, metric="mse")
    found = entry(result, "x")
    assert (not found.quantizer.signed) == unsigned
    assert (found.shift is not None) == shifted
    if unsigned:
        assert found.quantizer.zero_point == 0
    else:
        assert "has no zero-points: weights symmetric, activations shifted" in note(result)


def test_symmetric_alone_stays_symmetric():
    found = entry(search(parse(LINEAR, w=normal(8, 4)), np.abs(normal(32, 8)) + 3, schemes='["symmetric"]'), "x")
    assert found.shift is None
    assert (found.quantizer.signed, int(found.quantizer.zero_point)) == (True, 0)


@pytest.mark.parametrize(("granularity", "scales"), [('["layer"]', 1), ('["channel"]', 8), ('["layer", "channel"]', 8)])
def test_channels_of_unequal_size_get_a_scale_each_unless_told_otherwise(granularity, scales):
    result = search(convolutions(), normal(8, 4, 8, 8), granularity=granularity)
    assert entry(result, "first").quantizer.scale.size == scales


def test_a_seed_gives_the_same_plan_again_and_another_seed_another():
    proto = convolutions()
    plans = [search(proto, normal_images(), places=40, seed=seed).plan.to_json() for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def normal_images():
    return np.random.default_rng(5).standard_normal((8, 4, 8, 8)).astype(np.float32)


def test_a_search_needs_data():
    with pytest.raises(OnnxquantError, match=r"search_scales|--calib"):
        rewrite(convolutions(), recipe="q-hyvit", target="tensorrt")


def test_attention_is_searched_on_both_sides_of_its_products():
    result = search(attention(), images(16), places=64)
    names = {entry.tensor for entry in result.plan.entries}
    assert {"q", "kt", "v", "probs"} <= names
    assert "9 activations" in note(result)
    assert result.report.sqnr_db > 15


@pytest.mark.slow
def test_bridges_are_judged_by_their_last_layer():
    """In the demo's model, whose bridges are found; alone, the first layer of one would get other scales."""
    demo = Path(__file__).parents[2] / "models" / "demo"
    model, data = demo / "mobilevit_xxs_digits.onnx", str(demo / "digits_train.npz")
    few = {"candidates": 10, "places": 64, "images": 2}
    together, alone = (search(model, data, bridges=str(bridges).lower(), **few) for bridges in (True, False))
    load_blocks = together.report.blocks
    assert load_blocks["bridge"] == 3
    changed = [
        a.node
        for a, b in zip(together.plan.entries, alone.plan.entries, strict=True)
        if a.role == "weight" and a.quantizer.scale.tolist() != b.quantizer.scale.tolist()
    ]
    assert changed
    assert all("conv_kxk" in node or "conv_1x1" in node for node in changed)


def with_rule(path, rule, **options):
    """A search by the recipe with a rule of the user's."""
    own = path / "own.toml"
    own.write_text(packaged("q-hyvit.toml") + f'[[rule]]\nkind = "bridge"\n{rule}\n')
    overrides = [f"search_scales.{name}={value}" for name, value in {"candidates": 20, "rounds": 1, **options}.items()]
    return rewrite(
        convolutions(), recipe=str(own), calibration=normal_images(), target="tensorrt", overrides=overrides,
        min_sqnr=-np.inf, samples=4,
    )  # fmt: skip


def packaged(recipe):
    return (files("onnxquant.recipes") / recipe).read_text("utf-8")


def test_a_bridge_that_a_rule_names_is_judged_as_a_whole(tmp_path):
    """Its first layer by what the last one makes of it."""
    rule = 'name = "^(Conv|Sigmoid|Mul)_"'
    together, alone = (with_rule(tmp_path, rule, bridges=str(bridges).lower()) for bridges in (True, False))
    assert together.report.blocks["bridge"] == 1
    assert "1 bridges judged as a whole" in note(together)
    assert "bridge" not in note(alone)
    scales = [entry(result, "first").quantizer.scale.tolist() for result in (together, alone)]
    assert scales[0] != scales[1]


def test_a_bridge_without_the_nodes_between_its_layers_is_named(tmp_path):
    result = with_rule(tmp_path, 'op_type = "Conv"')
    assert result.report.blocks["bridge"] == 2
    for name in ("Conv_0", "Conv_3"):
        assert f"bridge {name}: judged layer by layer" in note(result)


def test_an_interrupted_search_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxquant.search.checkpoint.SECONDS", 0)
    proto, x, file = convolutions(), normal_images(), tmp_path / "search.json"
    whole = search(proto, x).plan.to_json()
    steps = []

    def rewritten(stop_at):
        def progress(done, total):
            steps.append((done, total))
            if total == 4 and done == stop_at:
                raise KeyboardInterrupt

        options = [f"search_scales.{name}" for name in ("candidates=50", "rounds=1", f"resume={file}")]
        return rewrite(
            proto, recipe="q-hyvit", calibration=x, target="tensorrt", overrides=options, min_sqnr=-np.inf, samples=16,
            progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        rewritten(stop_at=3)
    assert file.exists()
    steps.clear()
    assert rewritten(stop_at=None).plan.to_json() == whole
    assert [done for done, total in steps if total == 4] == [3, 4], "the first three tensors are not searched again"
    assert not file.exists()


def test_the_state_of_another_search_is_refused(tmp_path):
    file = tmp_path / "search.json"
    file.write_text('{"search_scales": {"fingerprint": "other", "done": 1}}')
    with pytest.raises(OnnxquantError, match="is of another model, data or recipe; remove it"):
        search(convolutions(), normal_images(), resume=file)
    file.write_text("no")
    with pytest.raises(OnnxquantError, match="not the state of a rewrite"):
        search(convolutions(), normal_images(), resume=file)


def test_a_plan_without_uniform_quantizers_leaves_nothing_to_search():
    overrides = ('quantize_linear_weights.exclude=["."]', 'quantize_activations.exclude=["."]')
    with pytest.raises(OnnxquantError, match="nothing to quantize"):
        rewrite(parse(LINEAR, w=normal(8, 4)), recipe="q-hyvit", calibration=normal(4, 8), overrides=overrides)
