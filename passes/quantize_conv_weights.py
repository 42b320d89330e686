"""Decide on uniform quantizers for the weights of Conv and ConvTranspose (EfficientQuant, section 2.2).

Algorithm 1 of the paper goes by operator first: every convolution counts as CNN, those inside a transformer block too
(the 1x1 "linears" of MobileViTv2). Activations stay in float. Granularity, which the paper leaves open, is the output
channel by default.

Rounding keeps each kernel's sum (`onnxquant.quantizers.rounding`); with calibration data the sum is weighted by the
mean of each input channel, which is the error that every pixel shares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from onnxquant.calibration.observers import ChannelMean
from onnxquant.errors import OnnxquantError
from onnxquant.graph.convolution import CONVOLUTIONS, output_channel_axis
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry, Rounding
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.targets.placement import runs_on_integers


class QuantizeConvWeights(Pass):
    """Quantize the constant weights of every Conv and ConvTranspose.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in 8-bit types.
        granularity: one scale an output channel, or one for the whole tensor.
        scheme: asymmetric (uint8 and a zero-point, as in the paper), symmetric (int8, zero-point 0), or what the target
            takes.
        rounding: sum_preserving or nearest.
        where: all of them, or only those that the target runs on integers.
        exclude: regular expressions on node names and module scopes; matching layers stay in float.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    scheme: Literal["auto", "asymmetric", "symmetric"] = "auto"
    rounding: Literal["sum_preserving", "nearest"] = "sum_preserving"
    where: Literal["all", "integer"] = "all"
    exclude: tuple[re.Pattern[str], ...] = ()

    requires: ClassVar[frozenset[str]] = frozenset({"blocks"})
    provides: ClassVar[frozenset[str]] = frozenset({"plan"})
    operators: ClassVar[frozenset[str]] = CONVOLUTIONS
    what: ClassVar[str] = "convolution"
    source: ClassVar[str] = " (EfficientQuant 2.2)"

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        if self.rounding == "sum_preserving":
            yield from ((node.inputs[0].name, ChannelMean) for node in self._layers(graph, context))

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        symmetric = context.target.is_symmetric(self.scheme, self.pass_name())
        layers = list(self._layers(graph, context))
        for node in layers:
            context.plan.add(self._decide(node, symmetric, context))
        return PassResult(False, tuple(self._notes(graph, context, len(layers))))

    def _notes(self, graph: gs.Graph, context: PassContext, quantized: int) -> Iterable[str]:
        yield (
            f"{quantized} weights to {self.bits} bits" if quantized else f"no {self.what} with a constant float weight"
        )
        candidates = self._candidates(graph)
        if skipped := len(candidates) - quantized:
            yield f"{skipped} {self.what}s left in float ({self._why_float})"
        inner = [*graph.subgraphs(recursive=True), *graph.functions]
        if hidden := sum(node.op in self.operators for each in inner for node in each.nodes):
            yield f"{hidden} {self.what}s in subgraphs and functions left in float"
        for pattern in self.exclude:
            if not any(pattern.search(label) for node in candidates for label in labels(node, context)):
                yield f"exclude {pattern.pattern!r} matches no {self.what}"

    def _candidates(self, graph: gs.Graph) -> list[gs.Node]:
        """The layers that there are to quantize."""
        return [node for node in graph.nodes if node.op in self.operators]

    @property
    def _why_float(self) -> str:
        few = "too little work for integers, " if self.where == "integer" else ""
        return f"{few}weight not a float constant, or excluded"

    def _layers(self, graph: gs.Graph, context: PassContext) -> Iterable[gs.Node]:
        for node in graph.nodes:
            if node.op not in self.operators or not isinstance(node.inputs[1], gs.Constant):
                continue
            if self.where == "integer" and not runs_on_integers(node, context.target.placement):
                continue
            excluded = any(pattern.search(label) for pattern in self.exclude for label in labels(node, context))
            # DequantizeLinear makes float32 and float16 only.
            if excluded or node.inputs[1].dtype not in (np.float32, np.float16):
                continue
            if not np.isfinite(node.inputs[1].values).all():
                raise OnnxquantError(
                    f"{context.model.name}: the weight of node {node.name} has NaN or infinite values; export it again"
                )
            yield node

    def _decide(self, node: gs.Node, symmetric: bool, context: PassContext) -> PlanEntry:
        weight = node.inputs[1]
        axis = output_channel_axis(node) if self.granularity == "per_channel" else None
        others = tuple(i for i in range(weight.values.ndim) if i != axis) if axis is not None else None
        quantizer = UniformQuantizer.from_range(
            weight.values.min(axis=others),
            weight.values.max(axis=others),
            bits=self.bits,
            symmetric=symmetric,
            axis=axis,
            scale_dtype=weight.dtype,
        )
        observed = context.observed(node.inputs[0].name, ChannelMean)
        mean = observed.mean.tolist() if observed and self.rounding == "sum_preserving" else None
        block = context.blocks.of(node) if context.blocks else None
        return PlanEntry(
            tensor=weight.name,
            role="weight",
            quantizer=quantizer,
            rounding=Rounding(mode=self.rounding, channel_mean=mean),
            node=node.name,
            why=f"{node.op} in {block.kind if block else 'unclassified'} block: uniform weights{self.source}",
        )


def labels(node: gs.Node, context: PassContext) -> tuple[str, str]:
    """What a user may name a layer by."""
    return node.name, context.model.scope(node)
