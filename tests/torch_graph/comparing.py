"""A graph in torch against ONNX Runtime, or against onnx's own reference where ONNX Runtime has no kernel."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser, shape_inference
from onnx.reference import ReferenceEvaluator

from onnxquant.torch_graph import TorchGraph
from tests.graphs import run


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def model_of(text: str, opset: int = 17, **weights: NDArray[Any]) -> onnx.ModelProto:
    """A model from the text of its graph, whose outputs need no shapes: ``float[] y``."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return shape_inference.infer_shapes(model, data_prop=True)


def assert_close(found: Any, expected: NDArray[Any], tolerance: float = 1e-5) -> None:
    """Same shape and type, and as close as `tolerance` of the largest value; integers are equal."""
    found = np.asarray(found)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    atol = tolerance * largest if np.issubdtype(expected.dtype, np.floating) else 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def assert_same(model: onnx.ModelProto, reference: bool = False, **feeds: NDArray[Any]) -> None:
    """Every output is that of ONNX Runtime, or of onnx's reference."""
    graph = TorchGraph(model)
    expected = ReferenceEvaluator(model).run(None, feeds) if reference else run(model, **feeds)
    found = graph.run(feeds)
    for name, values in zip(graph.outputs, expected, strict=True):
        assert_close(found[name], values)


def one_node(
    call: str, *arrays: NDArray[Any], opset: int = 17, outputs: str = "float[] y", **weights: NDArray[Any]
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A model of one node, whose inputs x0, x1, ... are fed with `arrays`; and the feeds.

    Args:
        call: the node as ONNX text without its output: ``Softmax <axis = 1> (x0)``.
        arrays: values of x0, x1, ...
        opset: of the model.
        outputs: their types and names.
        weights: values of initializers.
    """
    types = {"float32": "float", "float64": "double"}
    feeds = {f"x{i}": np.asarray(array) for i, array in enumerate(arrays)}
    inputs = ", ".join(
        f"{types.get(array.dtype.name, array.dtype.name)}{list(array.shape) or ''} {name}"
        for name, array in feeds.items()
    )
    names = ", ".join(re.findall(r"\] (\w+)", outputs))
    return model_of(f"g ({inputs}) => ({outputs}) {{ {names} = {call} }}", opset, **weights), feeds


def assert_node_is_same(call: str, *arrays: NDArray[Any], reference: bool = False, **kwargs: Any) -> None:
    """`assert_same` for a model of one node; see `one_node`."""
    model, feeds = one_node(call, *arrays, **kwargs)
    assert_same(model, reference, **feeds)
