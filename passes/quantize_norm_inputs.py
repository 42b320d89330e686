"""Decide on quantizers with power-of-two factors for what LayerNorm reads (FQ-ViT, section 3.2).

Only the norm reads the codes; the residual stream that its input is part of goes on in float. What a layer reads as
codes too keeps the quantizer that it has. Ranges are from the smallest value to the largest.

It is for comparing methods: no runtime has an integer kernel for LayerNorm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from onnxquant.passes.quantize_activations import FLOATS
from pydantic import Field

from onnxquant.calibration.observers import LastAxisMinMax
from onnxquant.graph.topology import Topology
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.power_of_two import PowerOfTwoFactorQuantizer


class QuantizeNormInputs(Pass):
    """Quantize what LayerNormalization reads, with one scale and a power-of-two factor a channel.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in 8-bit types.
        factors: how many there are to choose from: 1, 2, 4, ...
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    factors: Annotated[int, Field(ge=1, le=8)] = 4

    requires: ClassVar[frozenset[str]] = frozenset({"observations"})
    provides: ClassVar[frozenset[str]] = frozenset({"plan"})

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        return ((tensor.name, LastAxisMinMax) for tensor, _ in _places(graph))

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        symmetric = context.target.is_symmetric("auto", self.pass_name())
        found: dict[str, tuple[gs.Tensor, list[gs.Node]]] = {}
        for tensor, norm in _places(graph):
            found.setdefault(tensor.name, (tensor, []))[1].append(norm)
        for entry in context.plan.entries:
            names = {norm.name for norm in found[entry.tensor][1]} if entry.tensor in found else set[str]()
            if entry.consumers is None or not names.issuperset(entry.consumers):
                found.pop(entry.tensor, None)
        for tensor, norms in found.values():
            context.plan.add(self._decide(tensor, norms, symmetric, context))
        if not found:
            return PassResult(False, ("no LayerNormalization reads an activation that no layer reads as codes",))
        return PassResult(False, (f"{len(found)} inputs of norms to {self.bits} bits, {self.factors} factors",))

    def _decide(self, tensor: gs.Tensor, norms: list[gs.Node], symmetric: bool, context: PassContext) -> PlanEntry:
        seen = self.measured(tensor.name, LastAxisMinMax, context)
        quantizer = PowerOfTwoFactorQuantizer.from_ranges(
            seen.minimum,
            seen.maximum,
            bits=self.bits,
            symmetric=symmetric,
            factors=self.factors,
            scale_dtype=np.dtype(tensor.dtype).type,
        )
        return PlanEntry(
            tensor=tensor.name,
            role="activation",
            quantizer=quantizer,
            consumers=[norm.name for norm in norms],
            node=norms[0].name,
            why="read by LayerNormalization: a power-of-two factor a channel (FQ-ViT 3.2)",
        )


def _places(graph: gs.Graph) -> Iterator[tuple[gs.Tensor, gs.Node]]:
    """Every norm with the activation that it reads."""
    topology = Topology(graph)
    for node in topology.nodes:
        if node.op == "LayerNormalization":
            tensor = node.inputs[0]
            if topology.is_activation(tensor) and tensor.dtype in FLOATS:
                yield tensor, node
