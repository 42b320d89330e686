"""adaround: weights round so that a layer's output, not each weight, is nearest."""

import numpy as np
import pytest

from onnxquant import rewrite
from onnxquant.measure.metrics import sqnr_db
from tests.graphs import attention, images, parse, run

RECIPE = """
    [[pass]]
    name = "classify_blocks"
    [[pass]]
    name = "calibrate"
    [[pass]]
    name = "quantize_conv_weights"
    bits = 3
    rounding = "nearest"
    [[pass]]
    name = "quantize_linear_weights"
    bits = 3
"""

ADAROUND = """
    [[pass]]
    name = "adaround"
    images = 16
    iterations = 100
"""

CONVOLUTIONS = """
    model (float[N, 4, 8, 8] image) => (float[N, 6, 8, 8] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, first)
        relu = Relu (a)
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (relu, second)
    }
"""


def rewritten(tmp_path, proto, data, *, learn):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + (ADAROUND if learn else ""))
    return rewrite(proto, recipe=str(path), calibration=data, samples=64, target="reference", min_sqnr=-np.inf)


def learned(plan):
    return {entry.tensor for entry in plan.entries if entry.rounding and entry.rounding.mode == "learned"}


def correlated(count, seed):
    """Images whose channels go together, as those of trained networks do: errors of weights can make up for others."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 1, 8, 8)) + 0.3 * rng.standard_normal((count, 4, 8, 8))).astype(np.float32)


def test_convolutions_round_by_what_they_compute(tmp_path):
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 4, 3, 3), (6, 8, 3, 3)))
    proto = parse(CONVOLUTIONS, first=first, second=second)
    plain, result = (rewritten(tmp_path, proto, correlated(64, 1), learn=learn) for learn in (False, True))
    assert learned(result.plan) == {"first", "second"}
    data = correlated(64, 2)
    before, after = (sqnr_db(run(proto, image=data)[0], run(each.model, image=data)[0]) for each in (plain, result))
    assert after > before + 2


def test_every_layer_with_quantized_weights_takes_part(tmp_path):
    result = rewritten(tmp_path, attention(), images(), learn=True)
    weights = {entry.tensor for entry in result.plan.entries if entry.role == "weight"}
    assert learned(result.plan) <= weights
    (first, *_) = next(run.result.notes for run in result.report.runs if run.name == "adaround")
    assert first.startswith(f"{len(weights)} modules: output error")


def test_what_modules_have_learned_is_left(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + '[[pass]]\nname = "reconstruct_modules"\nimages = 8\niterations = 60\n' + ADAROUND)
    result = rewrite(attention(), recipe=str(path), calibration=images(), target="reference", min_sqnr=-np.inf)
    notes = {run.name: run.result.notes for run in result.report.runs}
    rest = len([entry for entry in result.plan.entries if entry.role == "weight"]) - 4
    assert notes["adaround"][0].startswith(f"{rest} modules: ")


def test_a_plan_whose_roundings_are_of_another_weight_names_the_tensor(tmp_path):
    from onnxquant.errors import OnnxquantError
    from onnxquant.plan import Rounding

    result = rewritten(tmp_path, attention(), images(), learn=True)
    name = next(iter(learned(result.plan)))
    entry = next(entry for entry in result.plan.entries if entry.tensor == name)
    entry.rounding = Rounding.learned(np.ones(3, bool))
    with pytest.raises(OnnxquantError, match=rf"plan: tensor {name} rounds 8 weights up or down, not \d+"):
        rewrite(attention(), plan=result.plan, min_sqnr=-np.inf)
