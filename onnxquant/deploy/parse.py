"""An ONNX model through TensorRT's parser, whose errors name the model's own nodes here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx

from onnxquant.deploy.tensorrt import TensorRT, first_error
from onnxquant.errors import OnnxquantError

_QUANTIZATION_OPS = re.compile(r"quantize|^QLinear|Integer$", re.IGNORECASE)


def parse(tensorrt: TensorRT, network: Any, model: onnx.ModelProto, path: Path | None, name: str) -> Any:
    """Fill `network`; returns the parser, which must live as long as the network: it holds weights.

    Args:
        tensorrt: whose parser.
        network: an empty INetworkDefinition.
        model: the model.
        path: of the file that it was read from: from a file only, the parser finds external data.
        name: what messages call the model.

    Raises:
        OnnxquantError: the parser refuses it.
    """
    parser = tensorrt.module.OnnxParser(network, tensorrt.logger)
    if not (parser.parse_from_file(str(path)) if path else parser.parse(model.SerializeToString())):
        raise _refused(tensorrt, parser, model, name)
    return parser


def _refused(tensorrt: TensorRT, parser: Any, model: onnx.ModelProto, name: str) -> OnnxquantError:
    if not parser.num_errors:
        return OnnxquantError(f"{name}: {tensorrt.name} can't parse it: {first_error(tensorrt)}")
    error = parser.get_error(0)
    node, op = _place(error, model)
    more = f" (and {parser.num_errors - 1} more like it)" if parser.num_errors > 1 else ""
    if _QUANTIZATION_OPS.search(op):
        remedy = "rewrite the float model with --target tensorrt"
    else:
        remedy = "export the model without it"
    return OnnxquantError(f"{name}: {tensorrt.name} refuses node {node} ({op}): {_plain(error.desc())}{more}; {remedy}")


def _place(error: Any, model: onnx.ModelProto) -> tuple[str, str]:
    """Name and operator of the node that an error is about; a node without a name is called by its output."""
    in_function = hasattr(error, "local_function_stack") and error.local_function_stack()
    if not in_function and 0 <= error.node() < len(model.graph.node):
        node = model.graph.node[error.node()]
        return node.name or f"of {node.output[0]}", node.op_type
    if hasattr(error, "node_name"):  # from 10 on
        return error.node_name(), error.node_operator()
    return f"number {error.node()}", "?"


def _plain(said: str) -> str:
    """The parser's words without the C++ condition that they come with."""
    said = (said.strip().splitlines() or [""])[0]
    if quoted := re.search(r'&& "(.+)"', said):
        return quoted[1].rstrip("?.")
    said = re.sub(r"^Assertion failed: .*?: |\. Please set k.*", "", said)
    return "the operator is not supported" if said in ("", "false") else said.rstrip(".")
