"""Observers inside the graph: a model that outputs what they take in, instead of its own outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from onnxquant.calibration.observers import Observer

DOMAIN = "onnxquant.observers"
"""Of the observers' functions, and what the names of all that is added begin with."""

ROWS, SAMPLES = f"{DOMAIN}/rows", f"{DOMAIN}/samples"
"""Inputs beside the model's own, for what `Observer.reduction` calls rows and samples."""


def batch_inputs(samples: int) -> dict[str, NDArray[Any]]:
    """What is fed beside a batch of so many samples, padding included."""
    return {ROWS: np.array([samples, -1]), SAMPLES: np.array([samples])}


def with_reductions(
    model: onnx.ModelProto, observations: Iterable[tuple[str, type[Observer]]]
) -> tuple[onnx.ModelProto, dict[tuple[str, type[Observer]], list[str]]]:
    """A copy of `model` that outputs what the observers take in, and nothing else.

    Args:
        model: not changed.
        observations: tensors' names and what observes them.

    Returns:
        The copy, and the names of its outputs for every observation.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.ir_version = max(copied.ir_version, 8)  # the first with functions
    copied.opset_import.add(domain=DOMAIN, version=1)
    copied.graph.input.append(helper.make_tensor_value_info(ROWS, onnx.TensorProto.INT64, [2]))
    copied.graph.input.append(helper.make_tensor_value_info(SAMPLES, onnx.TensorProto.INT64, [1]))
    del copied.graph.output[:]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    functions: dict[type[Observer], onnx.FunctionProto] = {}
    calls, outputs = [], {}
    for tensor, kind in observations:
        if kind not in functions:
            functions[kind] = _function(kind, opset)
            for name, values in kind.constants.items():
                copied.graph.initializer.append(numpy_helper.from_array(values, f"{DOMAIN}/{kind.__name__}/{name}"))
        function = functions[kind]
        inputs = {name: f"{DOMAIN}/{kind.__name__}/{name}" for name in kind.constants}
        inputs |= {"x": tensor, "rows": ROWS, "samples": SAMPLES}
        names = [f"{DOMAIN}/{tensor}/{kind.__name__}/{output}" for output in function.output]
        calls.append(helper.make_node(function.name, [inputs[name] for name in function.input], names, domain=DOMAIN))
        outputs[tensor, kind] = names
        copied.graph.output.extend(map(helper.make_empty_tensor_value_info, names))
    copied.functions.extend(functions.values())
    # ONNX Runtime runs nodes that nothing depends on in reverse order: with those of the last tensor first, each tensor
    # is reduced and freed while the model runs, not after it.
    producers = {output: position for position, node in enumerate(model.graph.node) for output in node.output}
    calls.sort(key=lambda node: producers.get(node.input[0], -1), reverse=True)
    copied.graph.node.extend(calls)
    return copied, outputs


def _function(kind: type[Observer], opset: int) -> onnx.FunctionProto:
    """The observer's function, in the model's opset."""
    function = parser.parse_function(
        f'<opset_import: ["": {opset}], domain: "{DOMAIN}"> {kind.__name__} {kind.reduction}'
    )
    nodes = list(function.node)
    del function.node[:]
    for node in nodes:
        if opset >= 18:  # the axes of reductions are an input now
            for attribute in [each for each in node.attribute if each.name == "axes"]:
                axes = f"axes_of_{node.output[0]}"
                function.node.append(helper.make_node("Constant", [], [axes], value_ints=attribute.ints))
                node.input.append(axes)
                node.attribute.remove(attribute)
        function.node.append(node)
    return function
