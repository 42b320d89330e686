"""Rewrites that the report's tests make pages of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxquant import RewriteResult, rewrite
from onnxquant.calibration.dataset import Dataset, input_specs, open_dataset, split_held
from onnxquant.graph.model import load
from onnxquant.pipeline import open_samples
from tests.graphs import attention, images

DEMO = Path(__file__).parents[2] / "models" / "demo"

HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}\u202e\"'&"
"""A name as nobody's exporter writes it: markup, a template, an override of the writing direction, quotes."""


def rewritten(
    model: onnx.ModelProto, data: NDArray[np.float32], samples: int = 4
) -> tuple[onnx.ModelProto, RewriteResult, Dataset]:
    """The model as it is loaded, its rewrite, and the samples that were held back."""
    dataset = open_dataset(data, input_specs(model), None)
    result = rewrite(model, calibration=dataset, samples=samples, min_sqnr=0)
    return load(model).to_proto(), result, split_held(dataset, samples)[1]


def hybrid() -> tuple[onnx.ModelProto, RewriteResult, Dataset]:
    """The smallest hybrid."""
    return rewritten(attention(), images(32), samples=8)


def demo() -> tuple[onnx.ModelProto, RewriteResult, Dataset]:
    """The demo model, on few samples."""
    model = onnx.load(DEMO / "mobilevit_xxs_digits.onnx")
    loaded = load(model)
    dataset = open_samples(loaded, DEMO / "digits_train.npz")
    assert dataset is not None
    result = rewrite(model, calibration=dataset, samples=4)
    return loaded.to_proto(), result, split_held(dataset, 4)[1]


def hostile() -> tuple[onnx.ModelProto, RewriteResult, Dataset]:
    """The smallest hybrid with `HOSTILE` in every name there is."""
    model = attention()

    def renamed(name: str) -> str:
        return f"{name}{HOSTILE}" if name else name

    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = renamed(value.name)
    for position, node in enumerate(model.graph.node):
        node.name = f"/{HOSTILE}/{position}/{node.op_type}".replace("</script>", "<\\script>")  # slashes end a scope
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
    model.graph.name = HOSTILE
    return rewritten(model, images(16))


def deep(layers: int = 500) -> tuple[onnx.ModelProto, RewriteResult, Dataset]:
    """A chain of convolutions under names of a usual length."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    tensor = "image"
    for position in range(layers):
        scope = f"/stages/stages.{position // 100}/blocks/blocks.{position % 100}/conv"
        channels = 3 if position == 0 else 16
        values = rng.standard_normal((16, channels, 3, 3)).astype(np.float32) * np.sqrt(2 / (9 * channels))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"{scope[1:]}.weight"))
        nodes.append(
            helper.make_node(
                "Conv", [tensor, weights[-1].name], [f"{scope}/Conv_output_0"], f"{scope}/Conv", pads=[1, 1, 1, 1]
            )
        )
        tensor = f"{scope}/Relu_output_0"
        nodes.append(helper.make_node("Relu", [f"{scope}/Conv_output_0"], [tensor], f"{scope}/Relu"))
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 16])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return rewritten(model, images(4), samples=2)
