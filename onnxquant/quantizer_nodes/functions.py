"""Functions of standard operators, added to the graph that calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import parser

from onnxquant.quantizer_nodes.making import Maker

DOMAIN = "onnxquant"


def add_functions(graph: gs.Graph, functions: Mapping[str, str]) -> None:
    """Add functions of the domain `DOMAIN` to a graph, unless they are there.

    Args:
        graph: its opset is that of the bodies.
        functions: ONNX text, with ``{opset}`` for the opset, by what goes into the doc string.
    """
    present = {function.name for function in graph.functions if function.domain == DOMAIN}
    for documentation, text in functions.items():
        proto = parser.parse_function(text.format(opset=graph.opset))
        if proto.name not in present:
            proto.doc_string = documentation
            graph.functions.append(gs.importers.onnx_importer.OnnxImporter.import_function(proto))


def calls(
    make: Maker, tensor: gs.Tensor, name: str, there: Mapping[str, float], back: Mapping[str, float]
) -> list[gs.Node]:
    """The nodes that call ``<name>QuantizeLinear``, which gives int8 codes, and ``<name>DequantizeLinear``.

    Args:
        make: names them.
        tensor: that the first reads.
        name: what both functions' names begin with.
        there: attributes of the first.
        back: of the second, beside ``to``, the type to give.
    """
    to = {"to": int(onnx.helper.np_dtype_to_tensor_dtype(make.dtype))}
    stem = "_".join(re.findall("[A-Z][a-z0-9]*", name)).lower()
    quantize = make.node(
        f"{name}QuantizeLinear", [tensor], f"{stem}_codes", attributes=dict(there), dtype=np.int8, domain=DOMAIN
    )
    dequantize = make.node(
        f"{name}DequantizeLinear", quantize.outputs, f"{stem}_dequantized", attributes={**back, **to}, domain=DOMAIN
    )
    return [quantize, dequantize]
