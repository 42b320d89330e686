"""A plan's channel scales and shifts are applied as it says, or refused by the tensor that they don't fit."""

import numpy as np
import pytest
from onnxquant.passes.apply_channel_scales import ApplyChannelScales

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext
from onnxquant.plan import QuantizationPlan
from tests.graphs import initializers, parse, run


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def norm_and_convs(pads):
    """A norm writes h, a conv z; pads are those of the conv that reads z."""
    return parse(
        f"""g (float[N, 5, 4] x, float[N, 4, 6, 6] m) => (float[N, 5, 3] y, float[N, 2, H, W] u) {{
            h = LayerNormalization <axis = -1> (x, gamma, beta)
            y = MatMul (h, w)
            z = Conv (m, v, c)
            u = Conv <pads = {pads}> (z, k)
        }}""",
        gamma=normal(4),
        beta=normal(4) + 1,
        w=normal(4, 3),
        v=normal(4, 4, 1, 1),
        c=normal(4, 1)[:, 0],
        k=normal(2, 4, 3, 3),
    )


def applied(proto, **plan):
    model = load(proto)
    result = ApplyChannelScales().run(model.graph, PassContext(model, plan=QuantizationPlan(**plan)))
    return model.to_proto(), result


SCALES = [0.5, 1.0, 2.0, 4.0]


def test_scales_and_shifts_change_the_weights_and_keep_the_outputs():
    proto, shifts = norm_and_convs([0] * 4), [1.0, -2.0, 0.0, 3.0]
    model, result = applied(proto, channel_scales={"h": SCALES, "z": SCALES}, channel_shifts={"h": shifts, "z": shifts})
    before, after = initializers(proto), initializers(model)
    np.testing.assert_allclose(after["gamma"], before["gamma"] / SCALES, rtol=1e-6)
    np.testing.assert_allclose(after["beta"], before["beta"] / SCALES - shifts, rtol=1e-6)
    np.testing.assert_allclose(after["c"], before["c"] / SCALES - shifts, rtol=1e-6)
    feeds = {"x": normal(3, 5, 4), "m": normal(3, 4, 6, 6)}
    for now, then in zip(run(model, **feeds), run(proto, **feeds), strict=True):
        np.testing.assert_allclose(now, then, atol=1e-5 * np.abs(then).max())
    assert result.notes == ("2 as the plan says",)


def test_a_plan_without_any_changes_nothing():
    proto = norm_and_convs([0] * 4)
    model, result = applied(proto)
    assert not result.modified
    assert all(np.array_equal(initializers(model)[name], values) for name, values in initializers(proto).items())


@pytest.mark.parametrize(
    "scales",
    [{"nowhere": [1.0] * 4}, {"h": [1.0] * 3}, {"h": [1.0, 1.0, 0.0, 1.0]}, {"h": [np.nan] * 4}, {"x": [1.0] * 3}],
    ids=["no such tensor", "another count", "a zero", "not a number", "an input"],
)
def test_scales_that_do_not_fit_are_refused(scales):
    with pytest.raises(OnnxquantError, match=rf"^plan: tensor {next(iter(scales))} .*another model"):
        applied(norm_and_convs([0] * 4), channel_scales=scales)


@pytest.mark.parametrize(
    ("tensor", "shifts"),
    [("h", [0.0] * 3), ("h", [0.0, np.inf, 0.0, 0.0]), ("z", [1.0] * 4)],
    ids=["another count", "infinite", "a reader that pads zeros"],
)
def test_shifts_that_do_not_fit_are_refused(tensor, shifts):
    plan = {"channel_scales": {tensor: SCALES}, "channel_shifts": {tensor: shifts}}
    with pytest.raises(OnnxquantError, match=rf"^plan: tensor {tensor} .* and channel_shifts; .*another model"):
        applied(norm_and_convs([1] * 4), **plan)


def test_shifts_without_scales_are_no_plan(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"channel_shifts": {"h": [1, 2]}}')
    with pytest.raises(OnnxquantError, match=r"tensor h has no channel_scales"):
        QuantizationPlan.from_json(path)


def test_a_recipe_that_lists_it_is_refused(tmp_path):
    """It would apply what the recipe's own passes have applied already."""
    recipe = tmp_path / "recipe.toml"
    names = ["classify_blocks", "quantize_linear_weights", "apply_channel_scales"]
    recipe.write_text("".join(f'[[pass]]\nname = "{name}"\n' for name in names))
    with pytest.raises(OnnxquantError, match=r"apply_channel_scales runs of itself .*; leave it out"):
        rewrite(norm_and_convs([0] * 4), recipe=str(recipe))
