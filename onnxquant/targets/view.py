"""A finished model as the rules of a target read it: functions inlined, every tensor with its type and its origin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxquant.errors import OnnxquantError, first_line
from onnxquant.targets import Target
from onnxquant.targets.inline import inline_functions, subgraphs

LARGE = 2**20
"""Bytes above which a constant's values stay behind when the model is copied; they are read from the original."""


class Scope:
    """One graph: what computes each tensor, and its type. Tensors of outer graphs are found too."""

    def __init__(self, graph: onnx.GraphProto, outer: Scope | None = None) -> None:
        self.outer = outer
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers: dict[str, Operator] = {}
        self.types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
        self.boundary = {value.name for value in (*graph.input, *graph.output)} if outer is None else set()

    def chain(self) -> Iterator[Scope]:
        """This graph and those around it."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.outer

    def producer(self, name: str) -> Operator | None:
        return next((scope.producers[name] for scope in self.chain() if name in scope.producers), None)

    def constant(self, name: str) -> onnx.TensorProto | None:
        """An initializer's or a Constant node's value, also behind Identity."""
        for scope in self.chain():
            if name in scope.constants:
                return scope.constants[name]
        producer = self.producer(name)
        if producer is not None and producer.op == "Identity":
            return self.constant(producer.inputs[0])
        return producer.value if producer is not None and producer.op == "Constant" else None

    def dtype(self, name: str) -> str:
        """The type's name, as ``float``; "" where it is unknown."""
        constant = self.constant(name)
        code = constant.data_type if constant is not None else 0
        for scope in self.chain():
            if not code and name in scope.types:
                code = scope.types[name].elem_type
        return "" if code == onnx.TensorProto.UNDEFINED else onnx.TensorProto.DataType.Name(code).lower()

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes, None for those unknown; None where even their number is unknown."""
        constant = self.constant(name)
        if constant is not None:
            return tuple(constant.dims)
        for scope in self.chain():
            if name in scope.types and scope.types[name].HasField("shape"):
                sizes = scope.types[name].shape.dim
                return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)
        return None


@dataclass(frozen=True)
class Operator:
    """A node and the graph that it is in."""

    proto: onnx.NodeProto
    scope: Scope

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def name(self) -> str:
        """What messages call it: an unnamed node goes by what it computes."""
        return self.proto.name or f"{self.op} of {self.output}"

    @property
    def inputs(self) -> list[str]:
        return list(self.proto.input)

    @property
    def output(self) -> str:
        return next(iter(self.proto.output), "")

    @property
    def quantizes(self) -> bool:
        """Whether it is a QuantizeLinear or a DequantizeLinear."""
        return self.op in ("QuantizeLinear", "DequantizeLinear")

    @property
    def value(self) -> onnx.TensorProto | None:
        """What a Constant node holds."""
        for attribute in self.proto.attribute:
            if attribute.HasField("t"):
                return attribute.t
            if attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
                content = np.asarray(onnx.helper.get_attribute_value(attribute))
                return numpy_helper.from_array(content.astype(np.float32 if "float" in attribute.name else np.int64))
        return None

    def input(self, position: int) -> str:
        """Name of an input; "" for an absent one."""
        return self.proto.input[position] if position < len(self.proto.input) else ""

    def attribute(self, name: str, default: Any) -> Any:
        values = (onnx.helper.get_attribute_value(entry) for entry in self.proto.attribute if entry.name == name)
        return next(values, default)

    def array(self, position: int) -> NDArray[Any] | None:
        """The values of a constant input; None for one that is computed."""
        constant = self.scope.constant(self.input(position))
        return None if constant is None else numpy_helper.to_array(constant)

    def dtype(self, position: int) -> str:
        return self.scope.dtype(self.input(position))

    def producer(self, position: int) -> Operator | None:
        return self.scope.producer(self.input(position))


@dataclass
class View:
    """What rules are given.

    Attributes:
        model: as it is, with its functions.
        main: the inlined main graph.
        operators: every node of the inlined model, those of subgraphs too, in the order they run.
        target: what is to take the model.
        capability: the compute capability to build for; None if unknown.
    """

    model: onnx.ModelProto
    main: Scope
    target: Target
    capability: tuple[int, int] | None
    operators: list[Operator] = field(default_factory=list)

    @classmethod
    def of(cls, model: onnx.ModelProto, target: Target, capability: tuple[int, int] | None) -> View:
        """Raises OnnxquantError where the model is invalid."""
        light = onnx.ModelProto()
        light.CopyFrom(model)
        for tensor in light.graph.initializer:
            if tensor.ByteSize() > LARGE:
                kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                tensor.CopyFrom(kept)
        try:
            if light.functions:
                light = inline_functions(light)
            inlined = onnx.shape_inference.infer_shapes(light)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
            name = model.graph.name or "model"
            raise OnnxquantError(f"{name}: not a valid ONNX graph: {first_line(error)}") from None
        view = cls(model, Scope(inlined.graph), target, capability)
        view.main.constants |= {tensor.name: tensor for tensor in model.graph.initializer}
        view._add(inlined.graph, view.main)
        return view

    def _add(self, graph: onnx.GraphProto, scope: Scope) -> None:
        for proto in graph.node:
            operator = Operator(proto, scope)
            self.operators.append(operator)
            scope.producers |= dict.fromkeys(proto.output, operator)
            for inner in subgraphs(proto):
                self._add(inner, Scope(inner, scope))
