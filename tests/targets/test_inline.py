"""Models without functions, for runtimes that know none."""

import numpy as np
import onnx

from onnxquant import rewrite
from onnxquant.targets import load_target
from onnxquant.targets.check import check_target
from onnxquant.targets.inline import inline_functions
from tests.graphs import attention, images, run
from tests.targets.patterns import graph


def functions(main, *definitions):
    return graph(f"g (float[2] x, bool c) => (float[2] y) {{ {main} }}\n" + "\n".join(definitions))


SCALED = """<domain: "mine", opset_import: ["" : 17]>
Scaled <factor: float = 0.5> (x) => (y) { f = Constant <value_float: float = @factor> () y = Mul (x, f) }"""
CLIPPED = """<domain: "mine", opset_import: ["" : 17]> Clipped (x, low, high) => (y) { y = Clip (x, low, high) }"""
TWICE = """<domain: "mine", opset_import: ["" : 17, "mine" : 1]>
Twice (x) => (y) { t = mine.Scaled (x) y = mine.Scaled <factor = 3.0> (t) }"""
X = np.array([1, -2], np.float32)


def test_a_rewritten_model_computes_the_same_without_functions():
    model = rewrite(attention(), calibration=images(32), target="tensorrt-8.6").model
    inlined = inline_functions(model)
    onnx.checker.check_model(inlined, full_check=True)
    assert not inlined.functions
    assert [(entry.domain, entry.version) for entry in inlined.opset_import] == [("", 17)]
    assert check_target(inlined, load_target("tensorrt-8.6")) == []
    for expected, found in zip(run(model, image=images()), run(inlined, image=images()), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_defaults_of_attributes_hold():
    model = functions("t = mine.Scaled (x) y = mine.Scaled <factor = 4.0> (t)", SCALED)
    (y,) = run(inline_functions(model), x=X, c=np.array(True))
    np.testing.assert_array_equal(y, 2 * X)


def test_functions_in_functions_and_in_branches_are_inlined():
    main = """y = If (c) <then_branch = t () => (float[2] a) { a = mine.Twice (x) },
                          else_branch = e () => (float[2] b) { b = mine.Scaled (x) }>"""
    inlined = inline_functions(functions(main, SCALED, TWICE))
    assert [entry.domain for entry in inlined.opset_import] == [""]
    for condition, factor in ((True, 1.5), (False, 0.5)):
        (y,) = run(inlined, x=X, c=np.array(condition))
        np.testing.assert_array_equal(y, factor * X)


def test_an_absent_optional_input_leaves_no_empty_name():
    inlined = inline_functions(functions("low = Constant <value_float = 0.0> () y = mine.Clipped (x, low)", CLIPPED))
    assert all(name for node in inlined.graph.node for name in node.input)
    np.testing.assert_array_equal(run(inlined, x=X, c=np.array(True))[0], [1, 0])


def test_every_inlined_node_has_a_name_of_its_own():
    inlined = inline_functions(functions("t = mine.Twice (x) y = mine.Twice (t)", SCALED, TWICE))
    names = [node.name for node in inlined.graph.node]
    assert all(names)
    assert len(names) == len(set(names))


def test_the_model_itself_is_not_changed():
    model = functions("y = mine.Twice (x)", SCALED, TWICE)
    before = model.SerializeToString(deterministic=True)
    inline_functions(model)
    assert model.SerializeToString(deterministic=True) == before


def test_domains_still_in_use_stay_imported():
    model = functions("t = mine.Scaled (x) y = com.microsoft.Gelu (t)", SCALED)
    assert [entry.domain for entry in inline_functions(model).opset_import] == ["", "com.microsoft"]
