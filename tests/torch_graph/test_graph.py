"""A graph in torch, whole and in part."""

import weakref

import numpy as np
import pytest
import torch
from onnx.shape_inference import infer_shapes
from onnx.utils import Extractor

from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.torch_graph import TorchGraph
from tests.graphs import attention, images, initializers, run
from tests.scripts import PRELUDE, run_script
from tests.targets.patterns import graph as any_graph
from tests.torch_graph.comparing import assert_close, model_of, normal


@pytest.fixture(scope="module")
def graph():
    return TorchGraph(attention())


def test_any_tensor_can_be_an_output(graph):
    names = ["act", "scores", "probs", "probabilities"]
    found = graph.run({"image": images()}, names)
    assert list(found) == names
    for name in names:
        (expected,) = run(Extractor(infer_shapes(attention())).extract_model(["image"], [name]), image=images())
        assert_close(found[name], expected)


def test_the_outputs_of_the_graph_are_the_default(graph):
    (expected,) = run(attention(), image=images())
    (found,) = graph.run({"image": images()}).values()
    assert_close(found, expected)


def test_only_nodes_between_what_is_fed_and_what_is_wanted_run(graph):
    tokens = torch.ones(2, 16, 8)
    ran = []
    watch = {name: lambda value, name=name: ran.append(name) or value for name in graph._makers}
    graph.run({"tokens": tokens}, ["probs"], watch)
    assert sorted(ran) == sorted(["tokens", "q", "k", "kt", "scores", "probs"])


def test_an_initializer_can_be_fed(graph):
    tokens, weight = normal(2, 16, 8), normal(8, 8, seed=1)
    found = graph.run({"tokens": tokens, "q_weight": weight}, ["q", "k"])
    assert_close(found["q"], tokens @ weight)
    assert_close(found["k"], tokens @ initializers(attention())["k_weight"])


def test_what_is_fed_may_have_other_shapes_than_in_the_graph(graph):
    """Three candidates of a weight, stacked on its outputs."""
    tokens, weights = normal(2, 16, 8), normal(8, 3 * 8)
    assert_close(graph.run({"tokens": tokens, "q_weight": weights}, ["q"])["q"], tokens @ weights)


def test_candidates_can_be_mapped_over(graph):
    image, weights = torch.from_numpy(images(2)), torch.from_numpy(normal(3, 8, 8))
    outcome = lambda weight: graph.run({"image": image, "k_weight": weight})["probabilities"]  # noqa: E731
    found = torch.func.vmap(outcome)(weights)
    assert_close(found, np.stack([outcome(weight) for weight in weights]))


def test_readers_and_the_caller_get_a_transformed_value(graph):
    halved = {name: lambda value: value / 2 for name in ("image", "stem_weight", "act")}
    image = images(2)
    found = graph.run({"image": image}, ["image", "act", "flat"], halved)
    feeds = {"image": image / 2, "stem_weight": initializers(attention())["stem_weight"] / 2}
    act = graph.run(feeds, ["act"])["act"]
    assert_close(found["image"], image / 2)
    assert_close(found["act"], act.numpy() / 2)
    assert_close(found["flat"], act.numpy().reshape(2, 8, 16) / 2)


def test_a_weight_can_be_trained_through_the_graph(graph):
    inputs, target = {"map": torch.from_numpy(normal(4, 8, 4, 4))}, torch.arange(4)
    weight = graph.constants["head_weight"].clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    losses = []
    for _ in range(20):
        logits = graph.run({**inputs, "head_weight": weight}, ["logits"])["logits"]
        losses.append(torch.nn.functional.cross_entropy(logits, target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert not any(constant.requires_grad for constant in graph.constants.values())


@pytest.mark.parametrize("wanted", [True, False])
def test_a_value_is_freed_when_its_last_reader_has_run(graph, wanted):
    alive = {}

    def remember(value):
        alive["stem"] = weakref.ref(value)
        return value

    def look(value):
        alive["later"] = alive["stem"]() is not None
        return value

    outputs = ["stem", "flat"] if wanted else ["flat"]
    graph.run({"image": images()}, outputs, {"stem": remember, "flat": look})
    assert alive["later"] == wanted


def test_nodes_may_be_in_any_order():
    model = load(attention())
    model.graph.nodes.reverse()
    (expected,) = run(attention(), image=images())
    assert_close(TorchGraph(model).run({"image": images()})["probabilities"], expected)


def test_functions_of_the_model_are_inlined():
    model = any_graph(
        """g (float[2] x) => (float[2] y) { y = mine.Scaled <factor = 3.0> (x) }
        <domain: "mine", opset_import: ["" : 17]>
        Scaled <factor: float = 0.5> (x) => (y) { f = Constant <value_float: float = @factor> () y = Mul (x, f) }"""
    )
    assert_close(TorchGraph(model).run({"x": normal(2)})["y"], 3 * normal(2))


HARDMAX = """
g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {
    y = Relu (x)
    [hard] h = Hardmax (y)
    z = Add (h, x)
}
"""


def test_an_unsupported_operator_is_named_with_a_way_out():
    said = (
        r"^node hard \(Hardmax\): onnxquant can't compute this operator in torch; "
        "export the model without it, or use a recipe that needs no gradients$"
    )
    with pytest.raises(OnnxquantError, match=said):
        TorchGraph(model_of(HARDMAX)).run({"x": normal(2, 3)})


def test_it_hinders_nobody_who_does_not_need_it():
    graph = TorchGraph(model_of(HARDMAX))
    assert_close(graph.run({"x": normal(2, 3)}, ["y"])["y"], normal(2, 3).clip(0))
    assert_close(graph.run({"x": normal(2, 3), "h": normal(2, 3)}, ["z"])["z"], 2 * normal(2, 3))


def test_an_operator_of_another_domain_is_named_with_it():
    model = any_graph("g (float[2] x) => (float[2] y) { y = com.microsoft.QuickGelu (x) }")
    with pytest.raises(
        OnnxquantError, match=r"^node QuickGelu_0 \(com\.microsoft\.QuickGelu\): onnxquant can't compute"
    ):
        TorchGraph(model).run({"x": normal(2)})


@pytest.mark.parametrize(
    ("feeds", "outputs", "said"),
    [
        ({}, None, "input image: what is to be computed depends on it; feed it"),
        ({"image": images()}, ["nowhere"], "tensor 'nowhere': the graph has none of this name"),
        ({"images": images()}, None, "tensor 'images': the graph has none of this name"),
        ({"image": np.array(["dog"])}, None, "tensor image: torch has no type for numpy's <U3; convert it to float32"),
        ({"image": images()[:, :2]}, None, r"node Conv_0 \(Conv\): torch refuses its inputs \(.*\); give values of"),
    ],
)
def test_what_does_not_fit_is_named(graph, feeds, outputs, said):
    with pytest.raises(OnnxquantError, match=f"^{said}") as error:
        graph.run(feeds, outputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(OnnxquantError, match=f"^device {device}: torch can't use it .*; use cpu$"):
        TorchGraph(attention(), device)


def test_a_rewrite_without_gradients_does_not_import_torch():
    script = f"""{PRELUDE}
import pkgutil, onnxquant.cli, onnxquant.passes
from tests.graphs import attention, images
for package in (onnxquant.cli, onnxquant.passes):
    for module in pkgutil.iter_modules(package.__path__, f"{{package.__name__}}."):
        __import__(module.name)
onnxquant.rewrite(attention(), calibration=images(16))
print("torch" in sys.modules)
import onnxquant.torch_graph
print("torch" in sys.modules)
"""
    assert run_script(script).stdout.split() == ["False", "True"]


def test_without_torch_the_error_says_what_to_install():
    script = """
import sys
from onnxquant.errors import OnnxquantError
sys.modules["torch"] = None
try:
    import onnxquant.torch_graph
except OnnxquantError as error:
    print(error)
"""
    said = "this needs torch, which is not installed: pip install 'onnxquant[search]'\n"
    assert run_script(script).stdout == said


@pytest.mark.parametrize("recipe", ["q-hyvit", "adfq-vit"])
def test_without_torch_recipes_that_take_it_say_what_to_install(recipe):
    script = f"""{PRELUDE}
import onnxquant
from onnxquant.errors import OnnxquantError
from tests.graphs import attention, images
sys.modules["torch"] = None
try:
    onnxquant.rewrite(attention(), recipe="{recipe}", calibration=images(4), target="reference")
except OnnxquantError as error:
    print(error)
"""
    assert run_script(script).stdout == "this needs torch, which is not installed: pip install 'onnxquant[search]'\n"
