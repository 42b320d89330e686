"""Find the bridges between convolutions and transformer blocks (Q-HyViT, Table 4).

A stage is a stream of residual blocks: following the skips upstream from an attention ends at the layer that made the
stream, the stage's entry. What lies there decides:

    only transformer blocks follow, on tokens     MobileViT v1, v2: the Conv before the entry (kxk), and the entry (1x1)
                                                  EfficientFormer V1 L7: the last layer before the entry, and that
    convolutional blocks come first               EfficientFormer V2: the entry, and the first layer of the first block
    same, but the stage turns into tokens later   EfficientFormer V1: also the last layer of the stage before

Where the entry is the sum of two downsampling branches, it is the projection of the one with attention (EfficientFormer
V2, stage 3). Cross-attention makes no stage: its keys and values come from another stream. No rule looks at shapes, so
a dynamic batch or image size changes nothing. Mobile-Former's bridges, inside each block, are not covered.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import onnx_graphsurgeon as gs

from onnxquant.graph.attention import Attention
from onnxquant.graph.parts import Mlp
from onnxquant.graph.topology import ACTIVATION_FUNCTIONS, ARITHMETIC, NORMS, POINTWISE_CHAIN, POOLS, Topology


@dataclass(frozen=True)
class Bridge:
    """A bridge: its layers in order, the entry's position, and every node from the first layer to the last."""

    layers: tuple[int, ...]
    entry: int
    nodes: frozenset[int]


def find_bridges(topology: Topology, attentions: list[Attention], mlps: list[Mlp]) -> list[Bridge]:
    """All bridges of a graph: one for each stage that holds attention and that a convolution begins."""
    projections = set(chain.from_iterable(attention.outputs for attention in attentions))
    transformers = {node for attention in attentions for node in attention.nodes}
    transformers |= {node for mlp in mlps for node in mlp.nodes}
    found: dict[int, Bridge] = {}
    for attention in attentions:
        entry, tokens = _entry(topology, attention, projections)
        if entry is None or entry in found or topology.op(entry) != "Conv":
            continue
        layers = _layers(topology, entry, tokens, transformers)
        if layers:
            nodes = topology.between(layers[:1], layers[-1:])
            found[entry] = Bridge(layers, entry, frozenset(nodes))
    return [found[entry] for entry in sorted(found)]


def _entry(t: Topology, attention: Attention, projections: set[int]) -> tuple[int | None, bool]:
    """The layer that begins the stage, and whether the stage turns into tokens on the way from there to the attention.

    The innermost residual around the attention may belong to a stream inside a block (EdgeNeXt): then the next one
    counts.
    """
    softmax = attention.softmax
    for addition, skip in t.skips.items():
        start = t.producer(skip)
        if start is not None and t.before[addition] >> softmax & 1 and not t.before[start] >> softmax & 1:
            if not all(t.before[operand] >> start & 1 for operand in attention.operands):
                return None, False
            entry, tokens = _follow_skips(t, skip, projections)
            if entry is not None:
                return entry, tokens
    return None, False


def _follow_skips(t: Topology, tensor: gs.Tensor, projections: set[int]) -> tuple[int | None, bool]:
    tokens = False
    while (position := t.producer(tensor)) is not None:
        if position in t.skips:
            tensor = t.skips[position]
        elif t.is_linear(position):
            return position, tokens
        elif t.operands[position] == 1 and t.op(position) in POINTWISE_CHAIN:
            tokens = tokens or t.op(position) == "Transpose"
            tensor = t.activation_inputs(t.nodes[position])[0]
        elif t.op(position) == "Add":  # two branches meet
            layers, _ = t.nearest([position], t.is_linear, t.passes(POINTWISE_CHAIN))
            return next((layer for layer in layers if layer in projections), None), tokens
        else:
            break
    return None, tokens


def _layers(t: Topology, entry: int, tokens: bool, transformers: set[int]) -> tuple[int, ...]:
    """The bridge's layers, from the stage's entry."""

    def is_layer(position: int) -> bool:
        return t.is_linear(position) or t.op(position) == "Conv"

    def through(position: int) -> bool:
        return t.op(position) in POINTWISE_CHAIN | POOLS

    def keeps_features(position: int) -> bool:
        if t.op(position) == "Add" and t.operands[position] > 1:
            return position in t.skips  # the end of a stage of convolutions, but no two branches that meet
        return t.op(position) in ARITHMETIC | ACTIVATION_FUNCTIONS | NORMS

    following, _ = t.nearest(t.users[entry], is_layer, through, downstream=True)
    if not following:
        return ()
    if following[0] not in transformers:
        if t.op(following[0]) != "Conv":
            return ()
        before, _ = t.nearest(t.sources[entry], is_layer, through) if tokens else ([], [])
        return (*(layer for layer in before[-1:] if t.op(layer) == "Conv"), entry, following[0])
    before, _ = t.nearest(t.sources[entry], is_layer, keeps_features)
    return (before[-1], entry) if tokens and before and before[-1] not in transformers else ()
