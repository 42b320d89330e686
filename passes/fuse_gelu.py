"""Make one Gelu node of what exporters spell out.

    GELU(x) = ½ x (1 + erf(x / √2))                             Hendrycks and Gimpel 2016, Eq. 2
            ≈ ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))          its approximation

Whatever reads a quantized value gets a DequantizeLinear of its own from ONNX Runtime, which tears the spelt-out form
apart; one node stays whole. Neither names nor the order of operands count: the arithmetic around the Erf or Tanh is
multiplied out, and has to be the polynomial above, in x and in what the Erf or Tanh writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxquant.errors import first_line
from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.pass_manager import Pass, PassContext, PassResult

OPSET = 20
"""Gelu exists since opset 20."""

Polynomial: TypeAlias = "dict[tuple[int, int], float]"
"""Coefficients by the exponents of x and of what the Erf or Tanh writes."""

ROOT = math.sqrt(2 / math.pi)
ARGUMENTS: dict[str, Polynomial] = {
    "Erf": {(1, 0): math.sqrt(0.5)},
    "Tanh": {(1, 0): ROOT, (3, 0): ROOT * 0.044715},
}
RESULT: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}

ARITHMETIC = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
LARGEST_DEGREE, DEEPEST = 3, 8
SEARCHED = 16
"""Tensors before the Erf or Tanh that may be x."""

TOLERANCE = {np.dtype(np.float16): 2e-3}
DEFAULT_TOLERANCE = 1e-4
"""Relative, of coefficients: a hand-written 1.4142 counts, and what float16 makes of the numbers."""

INLINE_SIZE = 64
"""Values of constants that take part in a conversion; larger ones are weights, which opsets don't change."""


@dataclass
class Match:
    """A GELU that was found.

    Attributes:
        x: its input.
        last: the node that writes its result.
        approximate: Gelu's attribute.
    """

    x: gs.Tensor
    last: gs.Node
    approximate: str


class FuseGelu(Pass):
    """Fuse the Erf and Tanh forms of GELU into Gelu, for targets that want it; raises the opset to 20."""

    edits: ClassVar[bool] = True

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        if not context.target.placement.gelu:
            return PassResult(False, (f"target {context.target.name} takes GELU as it is",))
        kept = {tensor.name for tensor in graph.outputs}  # these values are also read by others than nodes
        kept.update(name for inner in graph.subgraphs(recursive=True) for name in inner.tensors())
        matches = [match for node in graph.nodes if node.op in ARGUMENTS and (match := find_gelu(node, kept))]
        if not matches:
            return PassResult(False, ("no GELU spelt out",))
        before = graph.opset
        if before < OPSET and (obstacle := raise_opset(graph, OPSET)):
            said = f"{len(matches)} GELU left as they are: opset {before} can't be raised to {OPSET} ({obstacle})"
            return PassResult(False, (said,))
        for match in matches:  # the last node keeps its name, and with it its scope and block
            match.last.op, match.last.inputs = "Gelu", [match.x]
            match.last.attrs = {} if match.approximate == "none" else {"approximate": match.approximate}
        graph.cleanup()
        raised = f", opset {before} raised to {OPSET}" if before < OPSET else ""
        return PassResult(True, (f"{len(matches)} GELU fused{raised}",))


def find_gelu(node: gs.Node, kept: set[str]) -> Match | None:
    """The GELU around an Erf or Tanh; None where that isn't one, or where a value inside it is `kept` for others."""
    tensor = node.outputs[0]
    tolerance = TOLERANCE.get(np.dtype(tensor.dtype), DEFAULT_TOLERANCE) if tensor.dtype else DEFAULT_TOLERANCE
    for x in _before(node.inputs[0]):
        powers = {id(x): (1, 0)}
        if not _equal(_expand(node.inputs[0], powers, len(x.shape or ())), ARGUMENTS[node.op], tolerance):
            continue
        powers[id(tensor)] = (0, 1)
        while len(tensor.outputs) == 1 and tensor.name not in kept:
            last = tensor.outputs[0]
            tensor = last.outputs[0]
            result = _expand(tensor, powers, len(x.shape or ()))
            if result is None:
                return None
            if _equal(result, RESULT, tolerance):
                return Match(x, last, "none" if node.op == "Erf" else "tanh")
        return None
    return None


def _before(tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """What `tensor` is computed from by arithmetic, nearest first."""
    pending = [tensor]
    for current in pending:
        if not isinstance(current, gs.Constant):
            yield current
            node = current.inputs[0] if current.inputs else None
            if node is not None and node.op in ARITHMETIC and len(pending) < SEARCHED:
                pending += node.inputs


def _expand(tensor: gs.Tensor, powers: dict[int, tuple[int, int]], rank: int, depth: int = 0) -> Polynomial | None:
    """`tensor` as a polynomial in the tensors whose exponents `powers` has by id; None where it isn't one.

    Constants count if they are one number, and don't add to the `rank` dimensions that x has.
    """
    if id(tensor) in powers:
        return {powers[id(tensor)]: 1.0}
    if isinstance(tensor, gs.Constant):
        return (
            {(0, 0): float(tensor.values.item())}
            if len(tensor.shape) <= rank and math.prod(tensor.shape) == 1
            else None
        )
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op not in ARITHMETIC or depth == DEEPEST:
        return None
    first = _expand(node.inputs[0], powers, rank, depth + 1)
    second = None if first is None else _expand(node.inputs[1], powers, rank, depth + 1)
    if first is None or second is None:
        return None
    if node.op in ("Add", "Sub"):
        sign = -1 if node.op == "Sub" else 1
        return {power: first.get(power, 0) + sign * second.get(power, 0) for power in {**first, **second}}
    if node.op == "Mul":
        return _product(first, second)
    if set(second) != {(0, 0)} or not second[0, 0]:  # Div and Pow, by a constant only
        return None
    if node.op == "Div":
        return _product(first, {(0, 0): 1 / second[0, 0]})
    return _power(first, second[0, 0])


def _product(first: Polynomial, second: Polynomial) -> Polynomial | None:
    result: Polynomial = {}
    for (i, j), a in first.items():
        for (k, m), b in second.items():
            result[i + k, j + m] = result.get((i + k, j + m), 0) + a * b
    return result if all(sum(power) <= LARGEST_DEGREE for power in result) else None


def _power(base: Polynomial, exponent: float) -> Polynomial | None:
    if exponent not in (1, 2, 3):
        return None
    result: Polynomial | None = base
    for _ in range(int(exponent) - 1):
        result = _product(result, base) if result is not None else None
    return result


def _equal(found: Polynomial | None, wanted: Polynomial, tolerance: float) -> bool:
    return (
        found is not None
        and found.keys() == wanted.keys()
        and all(math.isclose(found[power], wanted[power], rel_tol=tolerance) for power in wanted)
    )


def raise_opset(graph: gs.Graph, opset: int) -> str | None:
    """Convert the nodes of a graph to a newer opset, where they are: they stay the same objects.

    onnx's converter does it on a copy without weights, and the graph takes over what it changed: attributes, and inputs
    that were attributes.

    Args:
        graph: left alone where the conversion fails.
        opset: newer than the graph's.

    Returns:
        Why it can't be converted; None where it was.
    """
    if graph.functions or any(graph.subgraphs()):
        return "functions and subgraphs aren't converted"  # the converter drops the functions
    prefix = "graph "  # tells the graph's tensors from those the converter adds, whatever their names
    skeleton = graph.copy()
    for tensor in list(skeleton.tensors().values()):
        tensor.name = prefix + tensor.name
        if isinstance(tensor, gs.Constant) and math.prod(tensor.shape) > INLINE_SIZE:
            skeleton.inputs.append(gs.Variable(tensor.name, tensor.dtype, tensor.shape))
            replace_uses(tensor, skeleton.inputs[-1])
    try:
        converted = gs.import_onnx(onnx.version_converter.convert_version(gs.export_onnx(skeleton), opset))
    except Exception as error:  # the converter raises whatever its C++ adapters throw
        return first_line(error)
    tensors = {prefix + name: tensor for name, tensor in graph.tensors().items()}
    nodes, unique = {node.name: node for node in graph.nodes}, UniqueNames.of_tensors(graph)
    for node in converted.nodes:
        if node.name not in nodes and node.op == "Constant":
            added = node.outputs[0].name
            tensors[added] = gs.Constant(unique(added), node.attrs["value"].values)
    if [node.name for node in converted.nodes if node.name or node.op != "Constant"] != list(nodes):
        return "the converter replaces nodes"
    for node in converted.nodes:
        kept = nodes.get(node.name)
        if kept is not None and kept.domain in (None, "", "ai.onnx"):
            kept.op, kept.attrs = node.op, node.attrs
            kept.inputs = [tensors.get(tensor.name, tensor) for tensor in node.inputs]
    others = [entry for entry in graph.import_domains or () if entry.domain not in ("", "ai.onnx")]
    graph.opset, graph.import_domains = opset, [onnx.helper.make_opsetid("", opset), *others]
    needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    graph.ir_version = max(graph.ir_version or 0, needed)
    return None
