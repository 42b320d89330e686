"""Find norms, MLPs and the classifier head by their structure.

    norm    an operator that is one; x - mean(x) over the root of its mean square, in single operators;
            InstanceNormalization with the Reshapes around it that make it a GroupNorm; BatchNormalization that
            follows no layer
    mlp     norm, linear, activation function, [depthwise Conv, activation function,] linear; every linear pointwise
    head    from the last pool, or choice of a token, to the graph's output

Without the norm, inverted residuals and squeeze-excite would match the MLP too, and BatchNormalization doesn't count:
those have it. MatMuls need no norm when a residual goes around them (LeViT has BatchNormalization only, Swin v2 the
norm afterwards): squeeze-excite multiplies instead of adding, and an inverted residual is made of Convs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import onnx_graphsurgeon as gs

from onnxquant.graph.topology import (
    ACTIVATION_FUNCTIONS,
    ARITHMETIC,
    NORMS,
    POINTWISE_CHAIN,
    POOLS,
    REDUCTIONS,
    SHAPE_OPS,
    Topology,
)

SELECTIONS = frozenset({"Flatten", "Gather", "Reshape", "Slice"})
HEAD_OPS = SHAPE_OPS | ARITHMETIC | ACTIVATION_FUNCTIONS | NORMS | POOLS | {"ArgMax", "LogSoftmax", "Softmax", "TopK"}


@dataclass(frozen=True)
class Norm:
    """A normalisation: its nodes, and whether it is BatchNormalization."""

    nodes: tuple[int, ...]
    batch: bool = False


@dataclass(frozen=True)
class Mlp:
    """Linear layers, the last one last (there are two firsts in SwiGLU), and every node from the first to the last."""

    linears: tuple[int, ...]
    nodes: frozenset[int]


def find_norms(topology: Topology) -> list[Norm]:
    """All normalisations of a graph."""
    found = []
    for position in range(len(topology.nodes)):
        op = topology.op(position)
        if op == "InstanceNormalization":
            found.append(Norm(_with_affine(topology, _with_reshapes(topology, position))))
        elif op == "BatchNormalization":
            if not _follows_layer(topology, position):
                found.append(Norm((position,), batch=True))
        elif op in NORMS:
            found.append(Norm((position,)))
        elif op == "ReduceMean" and (nodes := _decomposed(topology, position)):
            found.append(Norm(_with_affine(topology, nodes)))
    return found


def find_mlps(topology: Topology, norms: list[Norm], taken: frozenset[int]) -> list[Mlp]:
    """All MLPs of a graph.

    Args:
        topology: the graph.
        norms: from `find_norms`.
        taken: nodes that already belong to something else.
    """
    normed = set(chain.from_iterable(norm.nodes for norm in norms if not norm.batch))

    def is_free(position: int) -> bool:
        return topology.is_pointwise(position) and position not in taken

    found = []
    through = topology.passes(POINTWISE_CHAIN | REDUCTIONS)
    for last in filter(is_free, range(len(topology.nodes))):
        firsts, blocked = topology.nearest(topology.sources[last], topology.is_linear, through)
        if blocked or not firsts or not all(map(is_free, firsts)):
            continue
        nodes = topology.between(firsts, [last])
        if not any(_bends(topology, position) for position in nodes - {*firsts, last}):
            continue
        if _read_norm(topology, firsts, normed) or _in_residual(topology, firsts, last):
            found.append(Mlp((*firsts, last), frozenset(nodes)))
    return found


def find_head(topology: Topology, norms: list[Norm], outputs: list[gs.Tensor]) -> frozenset[int]:
    """The nodes from the last pool, or choice of a token, to the outputs; empty where there is no classifier.

    Args:
        topology: the graph.
        norms: from `find_norms`; a mean that is part of one is no pool.
        outputs: the graph's outputs.
    """
    normed = set(chain.from_iterable(norm.nodes for norm in norms))

    def is_pool(position: int) -> bool:
        return topology.op(position) in POOLS and position not in normed

    through = topology.passes(HEAD_OPS)
    ends = [end for end in map(topology.producer, outputs) if end is not None and topology.is_active(end)]
    candidates: set[int] = set()
    pending = list(ends)
    while pending:
        position = pending.pop()
        if position not in candidates and (through(position) or topology.is_pointwise(position)):
            candidates.add(position)
            if not is_pool(position):
                pending += topology.sources[position]
    head: set[int] = set()
    for position in sorted(candidates):
        sources = topology.sources[position]
        enclosed = bool(sources) and len(sources) == topology.operands[position] and head.issuperset(sources)
        if enclosed or is_pool(position) or topology.op(position) in SELECTIONS:
            head.add(position)
    decides = any(topology.is_linear(position) or is_pool(position) for position in head)
    return frozenset(head) if decides and head.intersection(ends) else frozenset()


def _read_norm(t: Topology, layers: list[int], normed: set[int]) -> bool:
    origins = [t.producer(t.origin(tensor)) for layer in layers for tensor in t.activation_inputs(t.nodes[layer])]
    return all(origin in normed for origin in origins)


def _follows_layer(t: Topology, position: int) -> bool:
    """Whether a BatchNormalization scales what a Conv or linear layer has just computed."""

    def is_layer(position: int) -> bool:
        return t.is_linear(position) or t.op(position).startswith("Conv")

    def is_bias_or_shape(position: int) -> bool:
        return t.operands[position] == 1 and t.op(position) in SHAPE_OPS | {"Add"}

    layers, blocked = t.nearest(t.sources[position], is_layer, is_bias_or_shape)
    return len(layers) == 1 and not blocked


def _only_user(t: Topology, position: int, *ops: str) -> int | None:
    """The one node that uses `position`, if its operator is one of `ops` and its other inputs are constant."""
    users = t.users[position]
    return users[0] if len(users) == 1 and t.op(users[0]) in ops and t.operands[users[0]] == 1 else None


def _with_reshapes(t: Topology, position: int) -> tuple[int, ...]:
    """GroupNorm: to (N, groups, rest) for InstanceNormalization, and back."""
    before = tuple(source for source in t.sources[position] if t.op(source) == "Reshape")
    after = _only_user(t, position, "Reshape")
    return (*before, position) if after is None else (*before, position, after)


def _with_affine(t: Topology, nodes: tuple[int, ...]) -> tuple[int, ...]:
    """`nodes`, with the scale and shift that follow them."""
    for op in ("Mul", "Add"):
        following = _only_user(t, nodes[-1], op)
        nodes = nodes if following is None else (*nodes, following)
    return nodes


def _decomposed(t: Topology, mean: int) -> tuple[int, ...]:
    """LayerNorm in single operators around the ReduceMean of its squares, or RMSNorm, which subtracts no mean.

    d = x - mean(x),  y = d / sqrt(mean(d²) + ε)
    """
    square = t.producer(t.nodes[mean].inputs[0])
    if square is None or t.op(square) not in ("Pow", "Mul"):
        return ()
    deviation = t.nodes[square].inputs[0]
    if t.op(square) == "Mul" and t.nodes[square].inputs[1] is not deviation:
        return ()
    nodes = [square, mean]
    for op in ("Add", "Sqrt"):
        following = _only_user(t, nodes[-1], op)
        if following is None:
            return ()
        nodes.append(following)
    reciprocal = _only_user(t, nodes[-1], "Reciprocal")
    nodes += [] if reciprocal is None else [reciprocal]
    users = t.users[nodes[-1]]
    if len(users) != 1 or t.op(users[0]) not in ("Div", "Mul"):
        return ()
    if not any(tensor is deviation for tensor in t.nodes[users[0]].inputs):
        return ()
    nodes.append(users[0])
    subtraction = t.producer(deviation)
    if subtraction is not None and t.op(subtraction) == "Sub":
        centre = t.producer(t.nodes[subtraction].inputs[1])
        if centre is not None and t.op(centre) == "ReduceMean":
            nodes = [centre, subtraction, *nodes]
    return tuple(nodes)


def _bends(t: Topology, position: int) -> bool:
    """Whether a node is more than an affine map: an activation function, or the gate of one."""
    op = t.op(position)
    return op in ACTIVATION_FUNCTIONS or op in ("Clip", "Max") or (op == "Mul" and t.operands[position] == 2)


def _in_residual(t: Topology, firsts: list[int], last: int) -> bool:
    """Whether MatMuls lie on a branch whose input is added to its output again."""
    if any(t.op(position) == "Conv" for position in (*firsts, last)):
        return False
    additions, _ = t.nearest(
        t.users[last], lambda p: p in t.skips, t.passes(SHAPE_OPS | ARITHMETIC | NORMS), downstream=True
    )
    read = set(chain.from_iterable(t.origins(first) for first in firsts))
    return any(id(t.origin(t.skips[addition])) in read for addition in additions)
