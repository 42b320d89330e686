"""Nodes, each tied to the torch function that computes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxquant.errors import OnnxquantError, first_line
from onnxquant.torch_graph.operators import OPERATORS

WAY_OUT = "export the model without it, or use a recipe that needs no gradients"


@dataclass(frozen=True)
class Step:
    """A node of the graph.

    Attributes:
        label: what messages call it: its name and operator.
        inputs: names of the tensors it reads, "" for absent ones.
        outputs: names of the tensors it computes, as far as onnxquant can.
        function: from the inputs to the output, or to all outputs if there are several; attributes are filled in.
        numbers: positions of the inputs that `function` takes as Python numbers.
    """

    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Callable[..., Any]
    numbers: tuple[int, ...]

    def compute(self, values: Sequence[Tensor | None], device: torch.device) -> Sequence[Tensor]:
        """The outputs.

        Args:
            values: of the inputs. If some lie on `device`, the others are moved there.
            device: what the graph runs on.

        Raises:
            OnnxquantError: torch refuses the values.
        """
        tensors = [value for i, value in enumerate(values) if value is not None and i not in self.numbers]
        there = any(tensor.device == device for tensor in tensors)
        try:
            arguments = [
                value
                if value is None
                else value.tolist()
                if i in self.numbers
                else value.to(device)
                if there
                else value
                for i, value in enumerate(values)
            ]
            result = self.function(*arguments)
        except OnnxquantError as error:
            raise OnnxquantError(f"{self.label}: {error}") from None
        except Exception as error:  # whatever torch makes of shapes and types that don't fit
            raise OnnxquantError(
                f"{self.label}: torch refuses its inputs ({first_line(error)}); give values of the shapes and types "
                "that the model takes"
            ) from error
        results = result if isinstance(result, (list, tuple)) else [result]
        # A tensor that is handed through becomes one of its own, which has a gradient of its own.
        return [each.view_as(each) if any(each is tensor for tensor in tensors) else each for each in results]


def step(node: gs.Node, opset: int) -> Step:
    """The step that computes `node`, of version `opset` of ONNX's main domain.

    Raises:
        OnnxquantError: there is no torch form of the operator, or of one of its attributes.
    """
    operator = node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}.{node.op}"
    label = f"node {node.name} ({operator})"
    known = OPERATORS.get(operator)
    if known is None:
        raise OnnxquantError(f"{label}: onnxquant can't compute this operator in torch; {WAY_OUT}")
    taken, defaults = _parameters(known.function), _defaults(node.op, opset)
    arguments = {}
    for name, value in (defaults | node.attrs).items():
        if name in taken:
            arguments[name] = value.values.copy() if isinstance(value, gs.Constant) else value
        elif name not in defaults or value != defaults[name]:
            raise OnnxquantError(f"{label}: onnxquant can't compute attribute {name} = {value} in torch; {WAY_OUT}")
    outputs = tuple(tensor.name for tensor in node.outputs)
    if known.several:
        arguments["outputs"] = len(outputs)
    else:
        outputs = outputs[:1]
    inputs = tuple(tensor.name for tensor in node.inputs)
    return Step(label, inputs, outputs, partial(known.function, **arguments), known.numbers)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except ValueError:  # torch's builtin functions, which stand for operators without attributes
        return frozenset()


@cache
def _defaults(operator: str, opset: int) -> dict[str, Any]:
    """The attributes that have a default in the ONNX schema."""
    attributes = onnx.defs.get_schema(operator, opset, "").attributes
    values = {
        name: onnx.helper.get_attribute_value(attribute.default_value)
        for name, attribute in attributes.items()
        if attribute.default_value.name
    }
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
