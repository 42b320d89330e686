"""What the report shows, gathered from a rewrite.

Distributions are those of the float model in the form that the plan was decided on, which its names refer to; weights
are compared with what the rewritten file holds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxquant import __version__
from onnxquant.blocks import KINDS, Block, Kind
from onnxquant.calibration.collector import collect, fitting_batch_size
from onnxquant.calibration.observers import ChannelMinMax, LastAxisMinMax, Log2Histogram, Observer
from onnxquant.calibration.samples import Dataset
from onnxquant.errors import OnnxquantError
from onnxquant.gate import Judgement
from onnxquant.graph.convolution import CONVOLUTIONS, LINEAR, to_rows
from onnxquant.graph.model import Model, load
from onnxquant.graph.topology import SHAPE_OPS
from onnxquant.measure.compare import Comparison, Layer, compare
from onnxquant.measure.metrics import sqnr_db
from onnxquant.passes.classify_blocks import ClassifyBlocks, Rule, classify
from onnxquant.pipeline import Report, RewriteResult, apply_edits, canonicalise, describe
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.recipes import build_passes, load_recipe
from onnxquant.report.figures import (
    Log2Figure,
    Logarithmic,
    ProfileFigure,
    RangeFigure,
    WeightFigure,
    octaves_needed,
)

OPERATORS_NAMED = 5
"""In the line that stands for a block."""

Progress: TypeAlias = Callable[[int, int], None]
Observed: TypeAlias = "dict[tuple[str, type[Observer]], Observer]"


@dataclass(frozen=True)
class Chip:
    """A quantizer in short, and in the words of `Report.quantized`."""

    kind: str
    short: str
    label: str

    @classmethod
    def of(cls, entry: PlanEntry) -> Chip:
        quantizer = entry.quantizer
        return cls(quantizer.kind, f"{entry.role[0].upper()}{quantizer.bits}", describe(entry))


@dataclass(frozen=True)
class NodeRow:
    """A node of a block."""

    name: str
    op: str
    shape: str
    chips: list[Chip]


@dataclass(frozen=True)
class BlockRow:
    """A block; `number` counts from 1 in the order of the network."""

    number: int
    kind: Kind
    variant: str
    scope: str
    operators: str
    parameters: int
    nodes: list[NodeRow]
    chips: dict[Chip, int]

    @property
    def title(self) -> str:
        return self.scope or self.nodes[0].name


@dataclass(frozen=True)
class PlanRow:
    """An entry of the plan, the block it belongs to and, for a weight, how well its codes stand for it."""

    number: int
    entry: PlanEntry
    chip: Chip
    shape: str
    parameters: str
    block: BlockRow | None
    sqnr_db: float | None


@dataclass(frozen=True)
class WeightCard:
    """A quantized weight."""

    row: PlanRow
    figure: WeightFigure


@dataclass(frozen=True)
class AttentionCard:
    """The probabilities of an attention block; without a row where they stay in float."""

    block: BlockRow
    tensor: str
    row: PlanRow | None
    figure: Log2Figure


@dataclass(frozen=True)
class BridgeCard:
    """A layer of a bridge: its weight, and its output where there is data."""

    block: BlockRow
    node: NodeRow
    weights: RangeFigure
    activations: RangeFigure | None


@dataclass(frozen=True)
class LayerRow:
    """A tensor that both models compute."""

    layer: Layer
    block: BlockRow | None


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    name: str
    recipe: str
    target: str
    report: Report
    provenance: str
    blocks: list[BlockRow]
    plan: list[PlanRow]
    weights: list[WeightCard]
    attention: list[AttentionCard]
    bridges: list[BridgeCard]
    layers: list[LayerRow]
    profile: ProfileFigure | None
    samples: int
    notes: list[str] = field(default_factory=list)
    version: str = __version__

    @property
    def counts(self) -> dict[Kind, int]:
        """Number of blocks of every kind that occurs."""
        counted = Counter(block.kind for block in self.blocks)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    @property
    def quantized(self) -> dict[Chip, int]:
        """Number of tensors by quantizer."""
        return dict(Counter(row.chip for row in self.plan))

    @property
    def top1_agreement(self) -> float | None:
        """The worst output's."""
        judgement = self.report.judgement
        shares = [agreement.top1_agreement for agreement in (judgement.agreement if judgement else {}).values()]
        return min((share for share in shares if share is not None), default=None)


def gather(
    original: onnx.ModelProto,
    result: RewriteResult,
    data: Dataset | None = None,
    *,
    name: str = "",
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> Page:
    """What the report of a rewrite shows.

    Args:
        original: the model before the rewrite.
        result: the rewrite. Where it holds no agreement, that is measured on `data`.
        data: samples to look at activations and layers with, best those that calibration didn't see.
        name: what the page calls the model.
        batch_size: the most samples to run at once.
        progress: called with (runs done, runs in all), in samples.

    Raises:
        OnnxquantError: the plan is for another model, or the data doesn't fit.
    """
    model = load(original)
    name = name or model.name
    canonicalise(model)
    rules, notes = _rules(result.plan.recipe)
    found = classify(model.graph, model, rules).blocks
    apply_edits(model, result.plan)
    tensors = model.graph.tensors()
    for entry in result.plan.entries:
        if entry.tensor not in tensors:
            raise OnnxquantError(f"plan: tensor {entry.tensor} is not in {name}; is the plan for another model?")
    observed, comparison = _measure(original, model, result, found, data, batch_size, progress)
    report, provenance = replace(result.report, exempt=result.plan.exempt), _provenance(result.report)
    if report.judgement is None and comparison is not None and data is not None:
        report = replace(report, judgement=Judgement(comparison.outputs, len(data), held_back=True))
        provenance = f"{samples(len(data))} given"

    by_tensor = {entry.tensor: entry for entry in result.plan.entries}
    blocks = [_block(number, block, by_tensor) for number, block in enumerate(found, 1)]
    pairs = list(zip(blocks, found, strict=True))
    owners = {node.name: row for row, block in pairs for node in block.nodes}
    plan = _plan_rows(result, tensors, owners)
    layers = comparison.layers if comparison else []
    producers = {output.name: node for node in model.graph.nodes for output in node.outputs}
    # Nodes that the recipe's own passes made are in no block.
    layer_blocks = {tensor: owners[node.name] for tensor, node in producers.items() if node.name in owners}
    by_tensor_db = {layer.tensor: layer.sqnr_db for layer in layers}
    # In the order of the network
    profile = [(block.kind, by_tensor_db[tensor]) for tensor, block in layer_blocks.items() if tensor in by_tensor_db]
    return Page(
        name=name,
        recipe=result.plan.recipe,
        target=result.plan.target,
        report=report,
        provenance=provenance,
        blocks=blocks,
        plan=plan,
        weights=_weight_cards(plan, tensors),
        attention=_attention_cards(pairs, plan, observed),
        bridges=_bridge_cards(pairs, observed),
        layers=[LayerRow(layer, layer_blocks.get(layer.tensor)) for layer in layers],
        profile=ProfileFigure.of(profile) if profile else None,
        samples=0 if data is None else len(data),
        notes=notes,
    )


def _rules(recipe: str) -> tuple[tuple[Rule, ...], list[str]]:
    """The recipe's rules for blocks, and what the reader must know where they can't be read any more."""
    try:
        passes = build_passes(load_recipe(recipe)) if recipe else []
    except OnnxquantError:
        return (), [f"The recipe {recipe} can't be read any more: blocks are shown without its rules."]
    return next((step.rules for step in passes if isinstance(step, ClassifyBlocks)), ()), []


def _measure(
    original: onnx.ModelProto,
    model: Model,
    result: RewriteResult,
    blocks: Sequence[Block],
    data: Dataset | None,
    batch_size: int,
    progress: Progress,
) -> tuple[Observed, Comparison | None]:
    """Activations of the float model, and both models layer by layer."""
    wanted: Observed = {}
    if data is None:
        return wanted, None
    for block in blocks:
        if block.kind == "attention" and block.softmax is not None:
            wanted[block.softmax.outputs[0].name, Log2Histogram] = Log2Histogram()
        if block.kind == "bridge":
            for node in _layers(block):
                kind = LastAxisMinMax if node.op in LINEAR else ChannelMinMax
                wanted[node.outputs[0].name, kind] = kind()
    total = 3 * len(data)  # once here, twice in compare
    if wanted:  # one sample at a time: whole activations come out
        collect(model.to_proto(), wanted, data, batch_size=1, progress=lambda done, _: progress(done, total))
    fitting = min(batch_size, fitting_batch_size(original, data[0].feeds))
    return wanted, compare(
        original, result.model, data, fitting, progress=lambda done, _: progress(len(data) + done, total)
    )


def samples(count: int, adjective: str = "") -> str:
    """``1 sample``, ``32 held-back samples``."""
    return f"{count} {adjective}sample{'' if count == 1 else 's'}"


def _provenance(report: Report) -> str:
    """What the agreement was measured on."""
    return report.judgement.measured_on if report.judgement else "not measured: no data"


def _block(number: int, block: Block, by_tensor: dict[str, PlanEntry]) -> BlockRow:
    nodes = [_node(node, by_tensor) for node in block.nodes]
    telling = [node.op for node in nodes if node.op not in SHAPE_OPS] or [node.op for node in nodes]
    counted = Counter(telling).most_common()
    operators = ", ".join(f"{count} {op}" if count > 1 else op for op, count in counted[:OPERATORS_NAMED])
    sizes = {
        tensor.name: math.prod(tensor.shape)
        for node in block.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant) and np.issubdtype(tensor.dtype, np.floating)
    }
    return BlockRow(
        number=number,
        kind=block.kind,
        variant=block.variant,
        scope=block.scope,
        operators=operators + (", …" if len(counted) > OPERATORS_NAMED else ""),
        parameters=sum(size for size in sizes.values() if size > 1),
        nodes=nodes,
        chips=dict(Counter(chip for node in nodes for chip in node.chips)),
    )


def _node(node: gs.Node, by_tensor: dict[str, PlanEntry]) -> NodeRow:
    """A node with the quantizers of its constants and of what it computes."""
    own = [*(tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)), *node.outputs]
    chips = [Chip.of(by_tensor[tensor.name]) for tensor in own if tensor.name in by_tensor]
    return NodeRow(node.name, node.op, _shape(node.outputs[0]) if node.outputs else "", chips)


def _shape(tensor: gs.Tensor) -> str:
    return " × ".join("?" if axis is None else str(axis) for axis in tensor.shape or ())


def _plan_rows(result: RewriteResult, tensors: dict[str, gs.Tensor], owners: dict[str, BlockRow]) -> list[PlanRow]:
    stored = _StoredWeights(result.model)
    rows = []
    for number, entry in enumerate(result.plan.entries, 1):
        tensor = tensors[entry.tensor]
        constant = isinstance(tensor, gs.Constant)
        values = stored.of(tensor, entry) if constant else None
        nodes = tensor.outputs if constant else tensor.inputs
        rows.append(
            PlanRow(
                number=number,
                entry=entry,
                chip=Chip.of(entry),
                shape=_shape(tensor),
                parameters=_parameters(entry),
                block=owners.get(nodes[0].name) if nodes else None,
                sqnr_db=None if values is None else sqnr_db(tensor.values, values),
            )
        )
    return rows


class _StoredWeights:
    """The weights that a rewritten model computes with."""

    def __init__(self, rewritten: onnx.ModelProto) -> None:
        self._nodes = {node.name: node for node in rewritten.graph.node}
        self._producers = {output: node for node in rewritten.graph.node for output in node.output}
        self._initializers = {initializer.name: initializer for initializer in rewritten.graph.initializer}

    def of(self, tensor: gs.Constant, entry: PlanEntry) -> NDArray[np.float32] | None:
        """The weight that `tensor` became; None where the model doesn't hold it as the plan says."""
        for layer in tensor.outputs[:1]:
            inputs = self._nodes[layer.name].input if layer.name in self._nodes else []
            slot = next(i for i, used in enumerate(layer.inputs) if used is tensor)
            dequantize = self._producers.get(inputs[slot]) if slot < len(inputs) else None
            while dequantize is not None and dequantize.op_type in ("Cast", "Flatten"):
                dequantize = self._producers.get(dequantize.input[0])
            if dequantize is not None and dequantize.op_type == "DequantizeLinear":
                codes = self._initializers.get(dequantize.input[0])
                quantizer = entry.quantizer
                if codes is None or tuple(codes.dims) != tuple(tensor.shape):
                    return None
                if isinstance(quantizer, UniformQuantizer):
                    values: NDArray[np.float32] = quantizer.dequantize(numpy_helper.to_array(codes))
                    return values
        return None


def _parameters(entry: PlanEntry) -> str:
    """A quantizer's parameters in a line."""
    said = entry.quantizer.describe()
    if not isinstance(entry.quantizer, UniformQuantizer):
        return said
    return f"{said}, {(entry.rounding.mode if entry.rounding else 'nearest').replace('_', '-')}"


def _weight_cards(plan: Sequence[PlanRow], tensors: dict[str, gs.Tensor]) -> list[WeightCard]:
    """Those of every uniformly quantized weight, worst first."""
    cards = [
        WeightCard(row, WeightFigure.of(tensors[row.entry.tensor].values.astype(np.float32), row.entry.quantizer))
        for row in plan
        if isinstance(row.entry.quantizer, UniformQuantizer) and isinstance(tensors[row.entry.tensor], gs.Constant)
    ]
    return sorted(cards, key=lambda card: math.inf if card.row.sqnr_db is None else card.row.sqnr_db)


def _attention_cards(
    pairs: Sequence[tuple[BlockRow, Block]], plan: Sequence[PlanRow], observed: Observed
) -> list[AttentionCard]:
    """Those of every attention block, quantized or not, on one axis."""
    rows = {row.entry.tensor: row for row in plan}
    found = []
    for block_row, block in pairs:
        if block.kind == "attention" and block.softmax is not None:
            tensor = str(block.softmax.outputs[0].name)
            row, seen = rows.get(tensor), observed.get((tensor, Log2Histogram))
            quantizer = row.entry.quantizer if row else None
            drawn = (
                seen if isinstance(seen, Log2Histogram) else None,
                quantizer if isinstance(quantizer, Logarithmic) else None,
            )
            found.append((block_row, tensor, row, drawn))
    octaves = max((octaves_needed(*drawn) for _, _, _, drawn in found), default=0)
    return [AttentionCard(block, tensor, row, Log2Figure.of(octaves, *drawn)) for block, tensor, row, drawn in found]


def _layers(block: Block) -> list[gs.Node]:
    """The layers of a block that have a constant weight."""
    layers = (node for node in block.nodes if node.op in CONVOLUTIONS | LINEAR)
    return [node for node in layers if isinstance(node.inputs[1], gs.Constant) and len(node.inputs[1].shape) > 1]


def _bridge_cards(pairs: Sequence[tuple[BlockRow, Block]], observed: Observed) -> list[BridgeCard]:
    cards = []
    for row, block in pairs:
        nodes = {node.name: node for node in row.nodes}
        for layer in _layers(block) if block.kind == "bridge" else []:
            rows = _channels(layer)
            kind = LastAxisMinMax if layer.op in LINEAR else ChannelMinMax
            seen = observed.get((layer.outputs[0].name, kind))
            activations = RangeFigure.of_observed(seen) if isinstance(seen, ChannelMinMax) else None
            weights = RangeFigure.of(rows.min(axis=1), rows.max(axis=1))
            cards.append(BridgeCard(row, nodes[layer.name], weights, activations))
    return cards


def _channels(layer: gs.Node) -> NDArray[np.float32]:
    """A layer's weight as one row for each output channel."""
    values: NDArray[np.float32] = layer.inputs[1].values.astype(np.float32)
    if layer.op in CONVOLUTIONS:
        return to_rows(layer, values)
    if layer.attrs.get("transB"):
        return values
    return np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
