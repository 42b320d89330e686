"""Functions of standard operators, added to the graph that calls them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs
from onnx import parser

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
