"""What a model's weights take."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx

_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers, by type and shape: external data need not be loaded."""
    return sum(map(_nbytes, initializers(model.graph)))


def initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Those of the graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from initializers(subgraph)


def _nbytes(tensor: onnx.TensorProto) -> int:
    bits = _PACKED_BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type))
    bits = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)
