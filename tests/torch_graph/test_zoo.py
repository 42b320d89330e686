"""Every export of the zoo computes in torch what it computes in ONNX Runtime."""

import numpy as np
import onnx
import onnx_ad
import pytest
import torch
from onnx.shape_inference import infer_shapes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onnxquant.graph.model import load
from onnxquant.pipeline import canonicalise
from onnxquant.torch_graph import SampledLoss, TorchGraph, gradients
from tests.fixtures import FIXTURES, first_of_families, load_fixture, with_batch
from tests.graphs import run
from tests.torch_graph.comparing import assert_close

TOLERANCE = 1e-4
FAMILIES = first_of_families()
CHEAP = [(name, "dynamo") for name in FAMILIES] + [("mobilevit_xxs", "torchscript")]


def pictures(model: onnx.ModelProto, batch: int = 1):
    sizes = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(0).standard_normal((batch, *sizes), np.float32)


def canonical(model: onnx.ModelProto):
    loaded = load(model)
    canonicalise(loaded)
    return loaded


@pytest.mark.parametrize(("name", "exporter"), CHEAP)
def test_an_export_of_each_family_computes_the_same(name, exporter):
    model = load_fixture(name, exporter)
    feeds = {"input": pictures(model)}
    assert_close(TorchGraph(canonical(model)).run(feeds)["logits"], run(model, **feeds)[0], TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), [fixture for fixture in FIXTURES if fixture[0] in FAMILIES])
def test_so_does_a_batch_and_one_of_fixed_size(name, exporter):
    dynamic = load_fixture(name, exporter)
    feeds = {"input": pictures(dynamic, 2)}
    assert_close(TorchGraph(dynamic).run(feeds)["logits"], run(dynamic, **feeds)[0], TOLERANCE)
    static, feeds = with_batch(dynamic, 1), {"input": pictures(dynamic)}
    assert_close(TorchGraph(canonical(static)).run(feeds)["logits"], run(static, **feeds)[0], TOLERANCE)


class OneDevice(TorchDispatchMode):
    """Fails where an operator's tensors lie on several devices, as it would on a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        assert len(devices) <= 1, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "exporter"),
    [("mobilevit_xxs", "torchscript"), *(pytest.param(name, "dynamo", marks=pytest.mark.slow) for name in FAMILIES)],
)
def test_shapes_are_computed_without_waiting_for_a_gpu(name, exporter):
    """The meta device has no values to wait for."""
    model = load_fixture(name, exporter)
    with OneDevice():
        logits = TorchGraph(model, "meta").run({"input": pictures(model, 2)})["logits"]
    assert (logits.shape, logits.device.type) == ((2, 1000), "meta")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), [("mobilevit_xxs", "torchscript"), ("efficientformerv2_s0", "dynamo")])
def test_gradients_of_an_export_are_those_of_onnx_ad(name, exporter):
    model = infer_shapes(canonical(with_batch(load_fixture(name, exporter), 1)).to_proto(), data_prop=True)
    feeds = {"input": pictures(model)}
    found = gradients(TorchGraph(model), feeds, ["input", "logits"], SampledLoss())
    adjoint = onnx_ad.reverse(model, inputs=["input"], outputs=["logits"], layout="onnx")
    *_, expected = run(adjoint, **feeds, adj_logits=found["logits"].gradient.numpy()[..., None])
    assert_close(found["input"].gradient, expected[..., 0])
