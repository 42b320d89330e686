"""Recipes: a method is a list of passes, and a mistake in one is a line that says where."""

import pytest

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from onnxquant.pass_manager import PassManager
from onnxquant.recipes import build_passes, find_pass, load_recipe, pass_names, recipe_names
from tests.graphs import attention


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_and_its_order_works(name):
    PassManager(build_passes(load_recipe(name)))


@pytest.mark.parametrize("name", pass_names())
def test_every_pass_is_called_as_its_file_and_says_what_it_does(name):
    step = find_pass(name)
    assert step.pass_name() == name
    assert step.__doc__


def test_a_recipe_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[pass]]\nname = "classify_blocks"\n[[pass]]\nname = "quantize_conv_weights"\nbits = 6\n'
        '[[rule]]\nkind = "bridge"\nop_type = "Conv"\nname = "^Conv_0$"\n'
    )
    result = rewrite(attention(), recipe=str(path))
    assert result.report.quantized == {"weight, uniform 6 bit (emulated: stored in 8)": 2}
    assert result.report.blocks["bridge"] == 1


def test_an_option_can_be_overridden():
    passes = build_passes(
        load_recipe("efficientquant"), ["quantize_conv_weights.bits=6", "quantize_conv_weights.rounding=nearest"]
    )
    step = next(step for step in passes if step.pass_name() == "quantize_conv_weights")
    assert (step.bits, step.rounding) == (6, "nearest")


def test_an_option_without_a_pass_is_that_of_all_passes_but_those_named():
    passes = build_passes(load_recipe("efficientquant"), ["quantize_softmax_log2.bits=5", "bits=6"])
    assert {step.pass_name(): step.bits for step in passes if hasattr(step, "bits")} == {
        "quantize_conv_weights": 6,
        "quantize_softmax_log2": 5,
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("depth=6", "--set depth: no pass of the recipe has such an option"),
        ("=6", "write it as pass.option=value"),
        ("quantize_conv_weights.bits", "write it as pass.option=value"),
        ("quantize_nothing.bits=6", "the recipe has no such pass; it has classify_blocks"),
        ("quantize_conv_weights.bit=6", "quantize_conv_weights: bit: unknown option"),
        ("quantize_conv_weights.bits=9", r"quantize_conv_weights: bits: .*less than or equal to 8 \(got 9\)"),
        ("quantize_conv_weights.bits=lots", "quantize_conv_weights: bits: .*valid integer"),
        ("quantize_conv_weights.scheme=odd", "quantize_conv_weights: scheme: .*'asymmetric'"),
        ("quantize_conv_weights.exclude=['(']", "quantize_conv_weights: exclude.0: .*regular expression"),
        ("quantize_softmax_log2.epsilon=0", "quantize_softmax_log2: epsilon: "),
    ],
)
def test_a_wrong_override_is_named(override, message):
    with pytest.raises(OnnxquantError, match=message):
        build_passes(load_recipe("efficientquant"), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pass]]\nname = 'quantise_conv_weights'", "did you mean quantize_conv_weights"),
        (
            "[[pass]]\nname = 'quantize_conv_weights'",
            "quantize_conv_weights needs blocks.*add classify_blocks before it",
        ),
        ("[[pass]", "not TOML"),
        ("title = 'x'", "pass: Field required"),
        ("[[pass]]\nname = 'classify_blocks'\n[surprise]", "surprise: unknown option"),
        ("[[pass]]\nbits = 8", "no pass is called ''"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(OnnxquantError, match=message):
        rewrite(attention(), recipe=str(path))


def test_an_unknown_recipe_is_answered_with_those_there_are():
    with pytest.raises(OnnxquantError, match=r"--recipe efficient: unknown; choose one of .*efficientquant, "):
        load_recipe("efficient")


def test_a_recipe_may_be_given_as_an_object():
    recipe = load_recipe("efficientquant")
    fewer = recipe.model_copy(update={"passes": [step for step in recipe.passes if "softmax" not in step["name"]]})
    result = rewrite(attention(), recipe=fewer)
    assert {entry.role for entry in result.plan.entries} == {"weight"}


def test_what_was_observed_before_a_pass_that_changes_it_does_not_serve_those_behind():
    recipe = load_recipe("repq-vit")
    first, second = (i for i, step in enumerate(recipe.passes) if step["name"] == "calibrate")
    assert recipe.passes[first + 1]["name"] == "reparameterize_norms"
    once = recipe.model_copy(update={"passes": recipe.passes[:second] + recipe.passes[second + 1 :]})
    with pytest.raises(OnnxquantError, match=r"needs observations, which no pass before it provides; add calibrate"):
        PassManager(build_passes(once))
