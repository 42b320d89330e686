"""Find attention by its structure, without a look at names.

    dot       Softmax(Q·K) · V        a Softmax between two products of activations
    factor    Q · (Softmax(K)·V)      CoaT: no product before the Softmax, one after it
    linear    Σ Softmax(Q) ⊙ K, ⊙ V   MobileViTv2: Softmax over tokens, times the keys, summed

Between the products lie only shape operators, arithmetic (scale, mask, relative position bias) and at most one linear
layer a side (talking heads). So an opset converter may wrap the Softmax in Flatten and Reshape, or in Transposes, and
nothing changes. Queries that are learned and don't depend on the input make the first product one by a constant on its
left (Mobile-Former's first block); that counts if keys and values come from the same tokens.

The second and third form need more than their shape: a select-kernel block also is Softmax, Mul, ReduceSum, and a
global-context block Softmax, MatMul. There the weights come from other features than the values; in attention both are
projections of the same tokens. That is checked. (With a product on both sides no check is needed: cross-attention
counts.)

Around the core: Q, K and V come from the nearest linear layers, found through norms, BatchNormalization, depthwise
Convs and Resize; the projection is the nearest linear layer after it that depends on nothing but them. The block is
every node between.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from onnxquant.graph.topology import ARITHMETIC, POINTWISE_CHAIN, POOLS, REDUCTIONS, SHAPE_OPS, Topology, mask

CORE = SHAPE_OPS | ARITHMETIC | {"Tanh"}  # Tanh: logits capped softly
PROJECTED = POINTWISE_CHAIN | POOLS | REDUCTIONS


@dataclass(frozen=True)
class Attention:
    """One attention; every node by its position.

    Attributes:
        softmax: its output is the attention probabilities.
        variant: "dot", "factor" or "linear".
        inputs: the linear layers that make Q, K and V.
        operands: where Q, K and V enter the core.
        outputs: the projection; empty where there is none.
        core: the Softmax, and everything between the products around it.
        nodes: all of it, from `inputs` to `outputs`.
    """

    softmax: int
    variant: str
    inputs: tuple[int, ...]
    operands: tuple[int, ...]
    outputs: tuple[int, ...]
    core: frozenset[int]
    nodes: frozenset[int]


@dataclass(frozen=True)
class _Core:
    variant: str
    begins: tuple[int, ...]  # the products before the Softmax, or the Softmax itself
    ends: tuple[int, ...]  # what yields the result
    operands: tuple[int, ...]  # where Q, K and V enter


def find_attention(topology: Topology) -> list[Attention]:
    """All attentions of a graph, in topological order of their Softmax."""
    found = []
    for position in range(len(topology.nodes)):
        if topology.op(position) == "Softmax" and topology.is_active(position):
            core = _dot(topology, position) or _factor(topology, position) or _linear(topology, position)
            if core:
                found.append(_with_projections(topology, position, core))
    return found


def _dot(t: Topology, softmax: int) -> _Core | None:
    through = t.passes(CORE)
    scores, _ = t.nearest(t.sources[softmax], t.is_product, through, layers=1)
    weighted, _ = t.nearest(t.users[softmax], t.is_product, through, downstream=True, layers=1)
    values = _others(t, weighted, softmax)
    if not scores:
        scores, _ = t.nearest(t.sources[softmax], lambda position: _has_learned_queries(t, position), through)
        scores = scores if _same_tokens(t, _sources(t, scores), values) else []
    if not scores or not weighted:
        return None
    operands = [*_sources(t, scores), *values]
    return _Core("dot", tuple(scores), tuple(weighted), tuple(operands))


def _factor(t: Topology, softmax: int) -> _Core | None:
    through = t.passes(CORE)
    context, _ = t.nearest(t.users[softmax], t.is_product, through, downstream=True, layers=1)
    values = _others(t, context, softmax)
    if not _same_tokens(t, t.sources[softmax], values):
        return None
    after = chain.from_iterable(t.users[product] for product in context)
    joined, _ = t.nearest(after, t.is_product, through, downstream=True)
    operands = (*t.sources[softmax], *values, *_others(t, joined, softmax))
    return _Core("factor", (softmax,), tuple(joined or context), operands)


def _linear(t: Topology, softmax: int) -> _Core | None:
    def is_gate(position: int) -> bool:
        return t.op(position) == "Mul" and t.operands[position] == 2

    moved = t.passes(SHAPE_OPS)
    gates, _ = t.nearest(t.users[softmax], is_gate, moved, downstream=True)
    keys = _others(t, gates, softmax)
    after = chain.from_iterable(t.users[gate] for gate in gates)
    sums, _ = t.nearest(after, lambda position: t.op(position) == "ReduceSum", moved, downstream=True)
    if not sums or not _same_tokens(t, t.sources[softmax], keys):
        return None
    after = chain.from_iterable(t.users[total] for total in sums)
    joined, _ = t.nearest(after, is_gate, moved, downstream=True)
    operands = (*t.sources[softmax], *keys, *_others(t, joined, softmax))
    return _Core("linear", (softmax,), tuple(joined or sums), operands)


def _has_learned_queries(t: Topology, position: int) -> bool:
    """Whether a MatMul's first factor is constant: a layer's weight is the second."""
    return t.op(position) == "MatMul" and t.is_linear(position) and not t.is_activation(t.nodes[position].inputs[0])


def _sources(t: Topology, nodes: list[int]) -> list[int]:
    return list(chain.from_iterable(t.sources[position] for position in nodes))


def _others(t: Topology, products: list[int], softmax: int) -> list[int]:
    """The operands of `products` that the Softmax has no part in."""
    return [operand for operand in _sources(t, products) if not t.before[operand] >> softmax & 1]


def _layers(t: Topology, operands: tuple[int, ...] | list[int]) -> list[int]:
    return t.nearest(operands, t.is_linear, t.passes(PROJECTED))[0]


def _same_tokens(t: Topology, one: tuple[int, ...] | list[int], other: tuple[int, ...] | list[int]) -> bool:
    """Whether both are projections of the same value."""
    read = [set(chain.from_iterable(t.origins(layer) for layer in _layers(t, operands))) for operands in (one, other)]
    return bool(read[0] & read[1])


def _with_projections(t: Topology, softmax: int, core: _Core) -> Attention:
    inputs = _layers(t, core.operands)
    begins = inputs or core.begins
    roots = mask(begins)

    def inside(position: int) -> bool:
        """Depends on Q, K and V alone: no residual enters here."""
        sources = t.sources[position]
        return len(sources) == t.operands[position] and all(t.before[source] & roots for source in sources)

    through = t.passes(PROJECTED)
    after = set(chain.from_iterable(t.users[end] for end in core.ends))
    outputs, _ = t.nearest(
        after,
        lambda position: t.is_linear(position) and inside(position),
        lambda position: through(position) and inside(position),
        downstream=True,
    )
    around = t.between(core.begins, [softmax]) | t.between([softmax], core.ends)
    nodes = t.between(begins, outputs or core.ends)
    return Attention(
        softmax, core.variant, tuple(inputs), core.operands, tuple(outputs), frozenset(around), frozenset(nodes)
    )
