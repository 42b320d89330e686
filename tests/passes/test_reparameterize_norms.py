"""Channels behind a norm get one range by scales and shifts in the weights around, and the output stays as it was."""

import numpy as np
import pytest
from onnxquant.passes.calibrate import Calibrate
from onnxquant.passes.reparameterize_norms import ReparameterizeNorms

from onnxquant import rewrite
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext, PassManager
from onnxquant.pipeline import canonicalise, open_samples
from onnxquant.plan import QuantizationPlan
from tests.fixtures import load_fixture
from tests.graphs import group_norm, initializers, op_types, parse, run

SPREAD = np.array([100, 1, 0.1, 3], np.float32)
"""Channels with ranges far apart."""


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def reparameterized(proto, data):
    """The model as the pass leaves it, the plan and what the pass said."""
    model = load(proto)
    context = PassContext(model, calibration=open_samples(model, data))
    runs = PassManager([Calibrate(), ReparameterizeNorms()], frozenset({"blocks"})).run(context)
    assert not context.observations, "they are of the graph as it was"
    return model.to_proto(), context.plan, runs[-1].result


def value_of(proto, tensor, x):
    exposed = type(proto)()
    exposed.CopyFrom(proto)
    exposed.graph.output.add(name=tensor)
    return run(exposed, x=x)[-1]


def check_equal(result, proto, x):
    for after, before in zip(run(result, x=x), run(proto, x=x), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())


def norm_and_readers(readers, outputs="float[N, 5, 6] y", **weights):
    return parse(
        f"""g (float[N, 5, 4] x) => ({outputs}) {{
            h = LayerNormalization <axis = -1> (x, gamma, beta)
            {readers}
        }}""",
        **{"gamma": normal(4) * SPREAD, "beta": 5 * normal(4), "w": normal(4, 6), **weights},
    )


READERS = {
    "a MatMul without a bias": ("y = MatMul (h, w)", {}),
    "a MatMul with one": ("p = MatMul (h, w)\n y = Add (bias, p)", {"bias": normal(6)}),
    "two MatMuls": ("a = MatMul (h, w)\n b = MatMul (h, v)\n y = Add (a, b)", {"v": normal(2, 4, 6)[0]}),
}


@pytest.mark.parametrize(("readers", "weights"), READERS.values(), ids=READERS)
def test_all_channels_get_one_range_and_the_output_stays(readers, weights):
    proto, x = norm_and_readers(readers, **weights), normal(16, 5, 4)
    result, plan, outcome = reparameterized(proto, x)
    assert plan.channel_scales.keys() == plan.channel_shifts.keys() == {"h"}
    assert outcome.notes == ("1 norms to one range for all channels",)
    before, after = (value_of(each, "h", x) for each in (proto, result))
    extents = np.ptp(before, axis=(0, 1))
    assert extents.max() > 30 * extents.min()
    np.testing.assert_allclose(after.max(axis=(0, 1)), extents.mean() / 2, rtol=1e-4)
    np.testing.assert_allclose(after.min(axis=(0, 1)), -extents.mean() / 2, rtol=1e-4)
    check_equal(result, proto, normal(7, 5, 4))


def test_a_gemm_takes_the_shift_in_its_own_bias():
    proto = parse(
        """g (float[N, 4] x) => (float[N, 6] y) {
            h = LayerNormalization (x, gamma, beta)
            y = Gemm <transB = 1> (h, w, c)
        }""",
        gamma=SPREAD,
        beta=normal(4),
        w=normal(6, 4),
        c=normal(6),
    )
    result, plan, _ = reparameterized(proto, normal(16, 4))
    assert list(plan.channel_shifts) == ["h"]
    assert op_types(result) == op_types(proto)
    check_equal(result, proto, normal(3, 4))


def test_the_scale_and_shift_behind_an_instance_norm():
    proto = group_norm(SPREAD)
    result, plan, _ = reparameterized(proto, normal(8, 4, 6, 6))
    assert list(plan.channel_shifts) == ["h"]
    check_equal(result, proto, normal(2, 4, 6, 6))


def test_a_channel_that_never_changes_and_one_that_hardly_does():
    gamma = np.array([100, 0, 1e-30, 3], np.float32)
    proto = norm_and_readers("y = MatMul (h, w)", gamma=gamma)
    result, plan, _ = reparameterized(proto, normal(16, 5, 4))
    assert min(plan.channel_scales["h"]) >= 1e-4
    check_equal(result, proto, normal(7, 5, 4))


STAYING = {
    "a residual Add reads it too": (
        "y = MatMul (h, w)\n z = Add (h, x)", "float[N, 5, 6] y, float[N, 5, 4] z", {},
    ),
    "the graph puts it out": ("y = MatMul (h, w)", "float[N, 5, 6] y, float[N, 5, 4] h", {}),
    "a Relu bends it": ("r = Relu (h)\n y = MatMul (r, w)", "float[N, 5, 6] y", {}),
    "a product of two activations": (
        "t = Transpose <perm = [0, 2, 1]> (h)\n p = MatMul (h, t)\n y = MatMul (p, v)", "float[N, 5, 6] y",
        {"v": normal(5, 6)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("readers", "outputs", "weights"), STAYING.values(), ids=STAYING)
def test_a_norm_stays_where(readers, outputs, weights):
    proto = norm_and_readers(readers, outputs, **weights)
    result, plan, outcome = reparameterized(proto, normal(16, 5, 4))
    assert not outcome.modified
    assert not plan.channel_scales
    assert outcome.notes == ("no norm with a shift that only linear layers read",)
    np.testing.assert_array_equal(initializers(result)["gamma"], initializers(proto)["gamma"])


def test_one_norm_is_changed_and_the_other_counted_as_left():
    proto = norm_and_readers(
        "y = MatMul (h, w)\n i = LayerNormalization <axis = -1> (y, one, one)\n z = Add (i, y)",
        "float[N, 5, 6] z",
        one=np.ones(6, np.float32),
    )
    _, plan, outcome = reparameterized(proto, normal(16, 5, 4))
    assert list(plan.channel_scales) == ["h"]
    assert outcome.notes[1].startswith("1 left: ")


def test_a_conv_that_pads_zeros_keeps_its_norm():
    """The zeros would have to be shifted too."""
    text = """g (float[N, 4, 6, 6] x) => (float[N, 5, H, W] y) {{
        n = InstanceNormalization (x, one, zero)
        s = Mul (n, gamma)
        h = Add (s, beta)
        y = Conv <pads = {pads}> (h, w)
    }}"""
    weights = {"one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32), "w": normal(5, 4, 3, 3)}
    weights |= {"gamma": SPREAD[:, None, None], "beta": normal(4, 1, 1)}
    for pads, expected in (([0] * 4, ["h"]), ([1] * 4, [])):
        proto = parse(text.format(pads=pads), **weights)
        result, plan, _ = reparameterized(proto, normal(8, 4, 6, 6))
        assert list(plan.channel_shifts) == expected
        check_equal(result, proto, normal(2, 4, 6, 6))


# In a recipe, and in a plan.

RECIPE = """
[[pass]]
name = "classify_blocks"
[[pass]]
name = "calibrate"
REPARAMETERIZE
[[pass]]
name = "quantize_linear_weights"
[[pass]]
name = "quantize_activations"
bits = 6
"""

REPARAMETERIZE = '[[pass]]\nname = "reparameterize_norms"\n[[pass]]\nname = "calibrate"\n'


def recipe(folder, reparameterize=True):
    path = folder / f"recipe_{reparameterize}.toml"
    path.write_text(RECIPE.replace("REPARAMETERIZE", REPARAMETERIZE if reparameterize else ""))
    return str(path)


@pytest.mark.parametrize("target", ["reference", "tensorrt"])
def test_one_scale_then_serves_the_layer(tmp_path, target):
    """γ and w are such that every channel matters as much at the output."""
    proto = norm_and_readers("y = MatMul (h, w)", gamma=SPREAD, beta=2 * SPREAD, w=normal(4, 6) / SPREAD[:, None])
    agreement = [
        rewrite(proto, recipe=recipe(tmp_path, with_it), calibration=normal(32, 5, 4), target=target, min_sqnr=-99)
        for with_it in (True, False)
    ]
    assert agreement[0].report.sqnr_db > agreement[1].report.sqnr_db + 15


def test_a_saved_plan_gives_the_same_model_without_data(tmp_path):
    readers = "y = MatMul (h, w)\n i = LayerNormalization <axis = -1> (y, one, one)\n z = MatMul (i, v)"
    proto = norm_and_readers(readers, "float[N, 5, 3] z", one=np.ones(6, np.float32), v=normal(6, 3))
    decided = rewrite(proto, recipe=recipe(tmp_path), calibration=normal(8, 5, 4), target="reference")
    saved = tmp_path / "plan.json"
    saved.write_text(decided.plan.to_json())
    assert list(decided.plan.channel_shifts) == ["h", "i"]
    again = rewrite(proto, plan=QuantizationPlan.from_json(saved))
    assert again.model.SerializeToString(deterministic=True) == decided.model.SerializeToString(deterministic=True)


def test_without_data_the_norms_stay(tmp_path):
    proto = norm_and_readers("y = MatMul (h, w)")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("REPARAMETERIZE", REPARAMETERIZE).partition('[[pass]]\nname = "quantize_act')[0])
    result = rewrite(proto, recipe=str(path))
    assert not result.plan.channel_scales
    said = {run.name: run.result.notes for run in result.report.runs}
    assert said["reparameterize_norms"] == ("no calibration data: ranges of channels are not known",)


def test_a_vision_transformer_computes_the_same():
    model = load(load_fixture("deit_t", "torchscript"))
    canonicalise(model)
    proto, data = model.to_proto(), normal(3, 3, 224, 224)
    result, plan, outcome = reparameterized(proto, data[:2])
    assert len(plan.channel_shifts) == 24
    assert outcome.notes == (
        "24 norms to one range for all channels",
        "1 left: others than linear layers read them, or they have no shift",
    )
    before, after = (run(each, input=data[2:])[0] for each in (proto, result))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())
