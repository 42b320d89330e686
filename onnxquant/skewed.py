"""What follows attention's Softmax and GELU: many small values and a few large ones, which one step serves badly.

What passes that give such tensors quantizers of their own have in common: where they look, and how they choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from pydantic import Field

from onnxquant.calibration.histogram import Histogram
from onnxquant.graph.topology import Topology
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult
from onnxquant.passes.fuse_gelu import ARGUMENTS, find_gelu
from onnxquant.passes.quantize_activations import FLOATS
from onnxquant.plan import PlanEntry
from onnxquant.targets.placement import runs_on_integers

Source: TypeAlias = Literal["Softmax", "GELU"]

NAMES: dict[Source, str] = {"Softmax": "a Softmax of attention", "GELU": "a GELU"}

POINTS = 8
"""Values that stand for those of a bin."""


class QuantizeSkewed(Pass):
    """Base of the passes that decide on what quantized layers read of attention's Softmax or of GELU.

    Of a pass's candidates for a tensor, the one with the least squared error on the calibration data is taken.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in int8.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8

    requires: ClassVar[frozenset[str]] = frozenset({"blocks", "observations"})
    provides: ClassVar[frozenset[str]] = frozenset({"plan"})
    sources: ClassVar[tuple[Source, ...]] = ("Softmax", "GELU")
    method: ClassVar[str] = ""
    """For the reader of the plan."""

    def candidates(self, source: Source, seen: Histogram, dtype: str) -> Iterable[Any]:
        """Quantizers of a tensor that `source` computes, of which there must be one; `dtype` is the tensor's."""
        raise NotImplementedError

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        return ((tensor.name, Histogram) for tensor, _, _ in self._places(graph, context))

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        weights = {entry.tensor for entry in context.plan.entries if entry.role == "weight"}
        found: dict[str, tuple[gs.Tensor, Source, list[gs.Node]]] = {}
        for tensor, source, node in self._places(graph, context):
            if not isinstance(node.inputs[1], gs.Constant) or node.inputs[1].name in weights:
                found.setdefault(tensor.name, (tensor, source, []))[2].append(node)
        if not found:
            return PassResult(False, (f"no quantized layer reads {' or '.join(NAMES[each] for each in self.sources)}",))
        for tensor, source, nodes in found.values():
            context.plan.add(self._decide(tensor, source, nodes, context))
        sources = [source for _, source, _ in found.values()]
        counted = " and ".join(f"{sources.count(each)} post-{each}" for each in self.sources)
        return PassResult(False, (f"{counted} activations to {self.bits} bits",))

    def _decide(self, tensor: gs.Tensor, source: Source, nodes: list[gs.Node], context: PassContext) -> PlanEntry:
        seen = self.measured(tensor.name, Histogram, context)
        values, counts = _values(seen)
        candidates = self.candidates(source, seen, np.dtype(tensor.dtype).name)
        return PlanEntry(
            tensor=tensor.name,
            role="activation",
            quantizer=min(candidates, key=lambda each: _squared_error(each, values, counts)),
            consumers=[node.name for node in nodes],
            node=nodes[0].name,
            why=f"post-{source} activation read by {', '.join(sorted({n.op for n in nodes}))}: {self.method}",
        )

    def _places(self, graph: gs.Graph, context: PassContext) -> Iterator[tuple[gs.Tensor, Source, gs.Node]]:
        """What integer layers read of a Softmax or GELU, perhaps moved about; with which it is, and the layer."""
        topology, skewed = Topology(graph), _skewed(graph, context)
        for node in topology.nodes:
            if not runs_on_integers(node, context.target.placement):
                continue
            for tensor in {operand.name: operand for operand in node.inputs[:2]}.values():
                source = skewed.get(topology.origin(tensor).name)
                if source in self.sources and topology.is_activation(tensor) and tensor.dtype in FLOATS:
                    yield tensor, source, node


def _skewed(graph: gs.Graph, context: PassContext) -> dict[str, Source]:
    """By the name of what an attention's Softmax or a GELU computes, which of them it is."""
    assert context.blocks is not None  # the manager has seen to it
    softmaxes = [block.softmax for block in context.blocks.of_kind("attention") if block.softmax is not None]
    gelus = [node for node in graph.nodes if node.op == "Gelu"]
    gelus += [match.last for node in graph.nodes if node.op in ARGUMENTS and (match := find_gelu(node, set()))]
    named: tuple[tuple[Source, list[gs.Node]], ...] = (("Softmax", softmaxes), ("GELU", gelus))
    return {node.outputs[0].name: source for source, nodes in named for node in nodes}


def _values(seen: Histogram) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Values spread evenly over the filled bins, float32 (bins, POINTS), and how many each row stands for."""
    filled = np.flatnonzero(seen.counts)
    places = seen.first + filled[:, None] + (np.arange(POINTS) + 0.5) / POINTS
    values = np.ldexp(places, seen.exponent).clip(seen.minimum, seen.maximum).astype(np.float32)
    return values, seen.counts[filled]


def _squared_error(quantizer: Any, values: NDArray[np.float32], counts: NDArray[np.int64]) -> float:
    errors = (quantizer.fake_quantize(values).astype(np.float64) - values) ** 2
    return float(errors.mean(axis=1) @ counts)
