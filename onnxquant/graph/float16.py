"""float16 graphs: which nodes have a float16 form, the edit that gives it to them, and what a float16 runtime computes.

Strongly typed runtimes (TensorRT 11, TensorRT-RTX) take every tensor's type from the file: that is where the casts go.

``convert_float_to_float16`` of onnxconverter-common 1.16 and its copy in onnxruntime.transformers don't take these
graphs: where a node stays in float32, an initializer or tensor that it shares with others ends up with two types or two
definitions, a graph output loses its type, and a ``Cast`` that is to stay makes the former run forever. Here one sweep
over the graph knows every tensor's type, and casts none twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper

from onnxquant.graph.edit import UniqueNames

LARGEST = 65504.0
"""The largest finite value."""

SMALLEST_NORMAL = 2.0**-14
"""Below it values lose precision, and below 2^-25 they are 0."""


def float16_inputs(node: gs.Node, opset: int) -> frozenset[int] | None:
    """Positions of the float32 inputs that are float16 in the node's float16 form, from the operator's ONNX schema.

    None where it has no such form: calls of functions, operators outside the standard, nodes with subgraphs, those with
    a tensor of unknown type, and those whose output's type doesn't follow from an input (Cast, ConstantOfShape).
    """
    if any(tensor.dtype is None and not tensor.is_empty() for tensor in (*node.inputs, *node.outputs)):
        return None
    if node.domain not in (None, "", "ai.onnx") or not onnx.defs.has(node.op, opset, "") or any(node.subgraphs()):
        return None
    schema = onnx.defs.get_schema(node.op, opset, "")
    half = {each.type_param_str for each in schema.type_constraints if "tensor(float16)" in each.allowed_type_strs}

    def kinds(tensors: list[gs.Tensor], parameters: Sequence[onnx.defs.OpSchema.FormalParameter]) -> dict[int, str]:
        """The schema's type of every float32 tensor, by position; the last parameter may stand for any number."""
        types = [parameter.type_str for parameter in parameters]
        return {i: types[min(i, len(types) - 1)] for i, tensor in enumerate(tensors) if tensor.dtype == np.float32}

    # An input that is float32 in every form, such as the scales of Resize, stays as it is.
    inputs = {i: kind for i, kind in kinds(node.inputs, schema.inputs).items() if kind != "tensor(float)"}
    outputs = kinds(node.outputs, schema.outputs)
    if not half.issuperset(inputs.values()) or not set(inputs.values()).issuperset(outputs.values()):
        return None
    return frozenset(inputs)


def to_float16(graph: gs.Graph, chosen: Mapping[int, frozenset[int]]) -> None:
    """Let nodes compute in float16, with casts where their values meet float32.

    Graph inputs and outputs keep their types, and tensors their names: what a cast makes of ``tensor`` is called
    ``tensor_float16`` or ``tensor_float32``.

    Args:
        graph: without float16 so far; topologically sorted, and stays so. Every float tensor has its type.
        chosen: the nodes' `float16_inputs`, by id of the node. No subgraph reads their outputs.
    """
    casts = _Casts(graph)
    interface = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        narrow = chosen.get(id(node), frozenset())
        for position, tensor in enumerate(node.inputs):
            if position in narrow:
                node.inputs[position] = casts.of(tensor, np.float16)
            elif tensor.dtype == np.float16 and node.op not in ("Shape", "Size"):  # which take any type
                node.inputs[position] = casts.of(tensor, np.float32)
        casts.nodes.append(node)
        for position, tensor in enumerate(node.outputs if narrow else ()):
            if tensor.dtype == np.float32 and id(tensor) in interface:
                node.outputs[position] = casts.into(tensor, np.float16)
            elif tensor.dtype == np.float32:
                tensor.dtype = np.dtype(np.float16)
    graph.nodes = casts.nodes


class _Casts:
    """Collects the graph's nodes, with a cast before the node that needs it first.

    Attributes:
        nodes: so far.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.nodes: list[gs.Node] = []
        self._unique = UniqueNames.of_tensors(graph)
        self._made: dict[tuple[str, str], gs.Tensor] = {}

    def of(self, tensor: gs.Tensor, dtype: DTypeLike) -> gs.Tensor:
        """`tensor` in type `dtype`."""
        if tensor.dtype == dtype:
            return tensor
        key = tensor.name, np.dtype(dtype).name
        if key not in self._made:
            if isinstance(tensor, gs.Constant):
                self._made[key] = gs.Constant(self._unique("_".join(key)), tensor.values.astype(dtype))
            else:
                self._cast(tensor, self._variable(tensor, dtype))
        return self._made[key]

    def into(self, tensor: gs.Tensor, dtype: DTypeLike) -> gs.Tensor:
        """A new tensor of type `dtype` that `tensor`, which nothing computes then, is cast from."""
        source = self._variable(tensor, dtype)
        self._cast(source, tensor)
        return source

    def _variable(self, tensor: gs.Tensor, dtype: DTypeLike) -> gs.Tensor:
        key = tensor.name, np.dtype(dtype).name
        return self._made.setdefault(key, gs.Variable(self._unique("_".join(key)), np.dtype(dtype), tensor.shape))

    def _cast(self, source: gs.Tensor, result: gs.Tensor) -> None:
        to = {"to": int(helper.np_dtype_to_tensor_dtype(np.dtype(result.dtype)))}
        self.nodes.append(gs.Node("Cast", f"{source.name}_Cast_{result.name}", to, [source], [result]))


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes in float32 and rounds every value that is float16 in `model`, beyond 65504 to infinity.

    ONNX Runtime has few float16 kernels for CPUs: between two nodes that lack one it computes in float32, and what
    would overflow doesn't. It keeps casts that a file has itself, so the result shows what a runtime with float16
    kernels would.

    Args:
        model: with the type of every float16 tensor in value_info; not changed. Functions and subgraphs stay as they
            are.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    half = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in half:
                wide, narrow = f"{name}/float32", f"{name}/float16"
                node.output[position] = wide
                nodes.append(helper.make_node("Cast", [wide], [narrow], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.FLOAT
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return result
