"""Decide on twin uniform quantizers for what follows Softmax and GELU (PTQ4ViT, section 3.2).

Only what quantized layers read of it: the products of attention and the layer behind a GELU. The parameter that the
method leaves open, the split of a Softmax or the step of GELU's positive values, is the one with the least squared
error on the calibration data; PTQ4ViT looks at the layer's output instead. `quantize_activations` comes after this pass
and leaves alone what it has decided on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxquant.passes.fuse_gelu import ARGUMENTS, find_gelu
from onnxquant.passes.quantize_activations import FLOATS
from pydantic import Field

from onnxquant.calibration.histogram import Histogram
from onnxquant.errors import OnnxquantError
from onnxquant.graph.topology import Topology
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.twin_uniform import TwinUniformQuantizer
from onnxquant.quantizers.uniform import SMALLEST_SCALE
from onnxquant.targets.placement import runs_on_integers

SPLITS = 20
"""Exponents that are tried; as many as the authors' code does."""

RATIOS = np.linspace(0.01, 1.2, 100)
"""Largest values of GELU that are tried, as parts of the largest seen."""

POINTS = 8
"""Values that stand for those of a bin."""


class QuantizeTwinUniform(Pass):
    """Quantize what layers read of attention's Softmax and of GELU in two ranges.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in int8.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8

    requires: ClassVar[frozenset[str]] = frozenset({"blocks", "observations"})
    provides: ClassVar[frozenset[str]] = frozenset({"plan"})

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        return ((tensor.name, Histogram) for tensor, _, _ in self._places(graph, context))

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        weights = {entry.tensor for entry in context.plan.entries if entry.role == "weight"}
        found: dict[str, tuple[gs.Tensor, str, list[gs.Node]]] = {}
        for tensor, op, node in self._places(graph, context):
            if not isinstance(node.inputs[1], gs.Constant) or node.inputs[1].name in weights:
                found.setdefault(tensor.name, (tensor, op, []))[2].append(node)
        if not found:
            return PassResult(False, ("no quantized layer reads a Softmax of attention or a GELU",))
        for tensor, op, nodes in found.values():
            context.plan.add(self._decide(tensor, op, nodes, context))
        softmaxes = sum(op == "Softmax" for _, op, _ in found.values())
        counted = f"{softmaxes} post-Softmax and {len(found) - softmaxes} post-GELU activations"
        return PassResult(False, (f"{counted} to {self.bits} bits",))

    def _decide(self, tensor: gs.Tensor, op: str, nodes: list[gs.Node], context: PassContext) -> PlanEntry:
        seen = context.observed(tensor.name, Histogram)
        if seen is None:
            raise OnnxquantError(
                f"{self.pass_name()}: the ranges of activations must be measured; give data with --calib"
            )
        smallest = SMALLEST_SCALE[np.dtype(tensor.dtype).name]
        if op == "Softmax":
            candidates = [TwinUniformQuantizer.post_softmax(i, bits=self.bits) for i in range(SPLITS)]
        else:
            largest = max(seen.maximum, 2**self.bits * smallest)  # where nothing is above 0, any step will do
            candidates = [TwinUniformQuantizer.post_gelu(largest * ratio, bits=self.bits) for ratio in RATIOS]
        stored = [each for each in candidates if min(each.low_scale, each.high_scale) >= smallest]
        values, counts = _values(seen)
        return PlanEntry(
            tensor=tensor.name,
            role="activation",
            quantizer=min(stored, key=lambda each: _squared_error(each, values, counts)),
            consumers=[node.name for node in nodes],
            node=nodes[0].name,
            why=f"post-{op} activation read by {', '.join(sorted({n.op for n in nodes}))}: two ranges (PTQ4ViT 3.2)",
        )

    def _places(self, graph: gs.Graph, context: PassContext) -> Iterator[tuple[gs.Tensor, str, gs.Node]]:
        """What integer layers read of a Softmax or GELU, perhaps moved about; with which it is, and the layer."""
        topology, skewed = Topology(graph), _skewed(graph, context)
        for node in topology.nodes:
            if not runs_on_integers(node, context.target.placement):
                continue
            for tensor in {operand.name: operand for operand in node.inputs[:2]}.values():
                op = skewed.get(topology.origin(tensor).name)
                if op and topology.is_activation(tensor) and tensor.dtype in FLOATS:
                    yield tensor, op, node


def _skewed(graph: gs.Graph, context: PassContext) -> dict[str, str]:
    """By the name of what an attention's Softmax or a GELU computes, which of them it is."""
    assert context.blocks is not None  # the manager has seen to it
    softmaxes = [block.softmax for block in context.blocks.of_kind("attention") if block.softmax is not None]
    gelus = [node for node in graph.nodes if node.op == "Gelu"]
    gelus += [match.last for node in graph.nodes if node.op in ARGUMENTS and (match := find_gelu(node, set()))]
    named = (("Softmax", softmaxes), ("GELU", gelus))
    return {node.outputs[0].name: op for op, nodes in named for node in nodes}


def _values(seen: Histogram) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Values spread evenly over the filled bins, float32 (bins, POINTS), and how many each row stands for."""
    filled = np.flatnonzero(seen.counts)
    places = seen.first + filled[:, None] + (np.arange(POINTS) + 0.5) / POINTS
    values = np.ldexp(places, seen.exponent).clip(seen.minimum, seen.maximum).astype(np.float32)
    return values, seen.counts[filled]


def _squared_error(quantizer: TwinUniformQuantizer, values: NDArray[np.float32], counts: NDArray[np.int64]) -> float:
    errors = (quantizer.fake_quantize(values).astype(np.float64) - values) ** 2
    return float(errors.mean(axis=1) @ counts)
