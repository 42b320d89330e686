"""Decide on per-token quantizers for what follows a LayerNormalization, outliers apart (ADFQ-ViT, section 3.2).

The layers that read it directly in attention and MLP blocks, qkv and fc1, get a scale a token and the few large values
in float. Scales are constants where the number of tokens is, each with the least squared error on the calibration data;
where it isn't, they are computed when the model runs. The paper's thresholds are 5 for qkv and 10 for fc1; models
differ, so what is an outlier is decided here by how many there are, of which the paper finds at most 0.5 %. On a small
vision transformer whose normalised values stay below 5 that is 1.1 dB better at 4 bits. `quantize_activations` comes
after this pass and leaves alone what it has decided on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import onnx_graphsurgeon as gs
from onnxquant.passes.quantize_activations import FLOATS
from pydantic import Field

from onnxquant.calibration.token_histogram import TokenHistogram
from onnxquant.errors import OnnxquantError
from onnxquant.graph.tensor_sizes import TensorSizes
from onnxquant.graph.topology import SHAPE_OPS, Topology
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.targets.placement import runs_on_integers


class SplitOutliers(Pass):
    """Quantize what qkv and fc1 layers read of a LayerNormalization by token, with its outliers in float.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in int8.
        threshold: "share", the smallest one that few enough values reach, for each tensor; or "fixed".
        share: the most outliers, as a part of a tensor's values; for threshold=share.
        qkv: the magnitude from which on values are outliers in attention blocks; for threshold=fixed.
        fc1: the same in MLP blocks.
        scales: "static", an error where the number of tokens isn't constant; "dynamic", computed when the model runs;
            "auto", static where it can be and there is data.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    threshold: Literal["share", "fixed"] = "share"
    share: Annotated[float, Field(gt=0, le=0.05)] = 0.005
    qkv: Annotated[float, Field(gt=0)] = 5.0
    fc1: Annotated[float, Field(gt=0)] = 10.0
    scales: Literal["auto", "static", "dynamic"] = "auto"

    requires: ClassVar[frozenset[str]] = frozenset({"blocks", "observations"})
    provides: ClassVar[frozenset[str]] = frozenset({"plan"})

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        if self.threshold == "share" or self.scales != "dynamic":
            for tensor, _, _ in self._places(graph, context):
                yield tensor.name, TokenHistogram

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        weights = {entry.tensor for entry in context.plan.entries if entry.role == "weight"}
        found: dict[str, tuple[gs.Tensor, str, list[gs.Node]]] = {}
        for tensor, kind, node in self._places(graph, context):
            if node.inputs[1].name in weights:
                found.setdefault(tensor.name, (tensor, kind, []))[2].append(node)
        if not found:
            return PassResult(False, ("no quantized MatMul of an attention or MLP block reads a LayerNormalization",))
        sizes = TensorSizes(graph)
        entries = [self._decide(tensor, kind, nodes, sizes, context) for tensor, kind, nodes in found.values()]
        for entry in entries:
            context.plan.add(entry)
        quantizers = [entry.quantizer for entry in entries if isinstance(entry.quantizer, PerTokenQuantizer)]
        dynamic = sum(quantizer.scale is None for quantizer in quantizers)
        split = sum(quantizer.threshold is not None for quantizer in quantizers)
        notes = f"{len(found)} post-LayerNorm activations to {self.bits} bits by token, {split} with outliers in float"
        return PassResult(False, (notes, *([f"{dynamic} with scales computed at run time"] if dynamic else ())))

    def _decide(
        self, tensor: gs.Tensor, kind: str, nodes: list[gs.Node], sizes: TensorSizes, context: PassContext
    ) -> PlanEntry:
        seen = context.observed(tensor.name, TokenHistogram)
        if seen is None and (self.threshold == "share" or self.scales == "static"):
            raise OnnxquantError(
                f"{self.pass_name()}: outliers and scales by token must be measured; give data with --calib, or set "
                "threshold=fixed and scales=auto"
            )
        tokens = _tokens(tensor, sizes)
        if tokens is None and self.scales == "static":
            raise OnnxquantError(
                f"{self.pass_name()}: tensor {tensor.name} has no constant number of tokens; set scales=auto"
            )
        fixed = self.qkv if kind == "attention" else self.fc1
        threshold: float | None = fixed
        scale = None
        if seen is not None:
            threshold = seen.threshold(self.share) if self.threshold == "share" else fixed
            if threshold is not None and not seen.reaches(threshold):
                threshold = None
            if tokens is not None and self.scales != "dynamic":
                scale = seen.scales(self.bits, threshold).reshape(tokens)
        return PlanEntry(
            tensor=tensor.name,
            role="activation",
            quantizer=PerTokenQuantizer(self.bits, scale, threshold),
            consumers=[node.name for node in nodes],
            node=nodes[0].name,
            why=f"post-LayerNorm activation of {kind} block: by token, outliers in float (ADFQ-ViT 3.2)",
        )

    def _places(self, graph: gs.Graph, context: PassContext) -> Iterator[tuple[gs.Tensor, str, gs.Node]]:
        """What MatMuls by constants read of a LayerNormalization, with the kind of block and the MatMul."""
        assert context.blocks is not None  # the manager has seen to it
        topology = Topology(graph)
        for node in topology.nodes:
            block = context.blocks.of(node)
            if block is None or block.kind not in ("attention", "mlp") or node.op != "MatMul":
                continue
            tensor, weight = node.inputs
            matrix = isinstance(weight, gs.Constant) and len(weight.shape) == 2 and tensor.dtype in FLOATS
            if matrix and runs_on_integers(node, context.target.placement) and _follows_norm(topology, tensor):
                yield tensor, block.kind, node


def _follows_norm(topology: Topology, tensor: gs.Tensor) -> bool:
    """Whether a tensor is what one LayerNormalization computes, perhaps moved about: rolled and cut into windows."""
    producer = topology.producer(tensor)
    if producer is None:
        return False
    found, blocked = topology.nearest(
        [producer], lambda at: topology.op(at) == "LayerNormalization", lambda at: topology.op(at) in SHAPE_OPS
    )
    return len(found) == 1 and not blocked


def _tokens(tensor: gs.Tensor, sizes: TensorSizes) -> tuple[int, ...] | None:
    """Sizes of the axes between the first and the last; None where one isn't constant, or there are none."""
    known = sizes.of(tensor)
    tokens = [size.factor for size in (known or ())[1:-1] if size is not None and not size.symbol]
    return tuple(tokens) if known is not None and tokens and len(tokens) == len(known) - 2 else None
