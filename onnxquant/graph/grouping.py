"""Put every node of a graph into one group, each of a kind; `classify_blocks` says by which rules, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnxquant.blocks import Kind
from onnxquant.graph.attention import find_attention
from onnxquant.graph.bridges import find_bridges
from onnxquant.graph.parts import find_head, find_mlps, find_norms
from onnxquant.graph.topology import ACTIVATION_FUNCTIONS, ARITHMETIC, POOLS, REDUCTIONS, SHAPE_OPS, Topology

FOLLOWERS = SHAPE_OPS | ARITHMETIC | ACTIVATION_FUNCTIONS | {"BatchNormalization", "Resize"}
FEEDERS = FOLLOWERS | POOLS | REDUCTIONS


@dataclass(eq=False)
class Group:
    """A block in the making, of positions.

    Attributes:
        kind: what the block is.
        anchors: the nodes that say where in the network it is; all of them where it has none of its own.
        softmax: the attention's Softmax.
        variant: of the attention.
        nodes: what it holds, sorted once `group` returns.
    """

    kind: Kind
    anchors: tuple[int, ...] = ()
    softmax: int | None = None
    variant: str = ""
    nodes: list[int] = field(default_factory=list)


class Assignment:
    """Which group each node belongs to; a node stays with the first that claims it."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.group: list[Group | None] = [None] * len(topology.nodes)

    def claim(self, group: Group, nodes: Iterable[int]) -> None:
        for position in nodes:
            if self.group[position] is None:
                self.group[position] = group

    def free(self) -> list[int]:
        """The nodes that compute activations and belong to no group yet."""
        return [
            position for position, group in enumerate(self.group) if group is None and self.topology.is_active(position)
        ]

    def groups(self) -> list[Group]:
        """All groups that hold nodes, in the order of their first."""
        groups: dict[int, Group] = {}
        for position, group in enumerate(self.group):
            assert group is not None
            if id(group) not in groups:
                groups[id(group)] = group
                group.nodes = []
            group.nodes.append(position)
        return list(groups.values())


def group_nodes(topology: Topology, outputs: list[gs.Tensor]) -> Assignment:
    """Every node in a group.

    Args:
        topology: the graph.
        outputs: the graph's outputs.
    """
    assignment = Assignment(topology)
    _claim_structures(topology, assignment, outputs)
    _claim_layers(topology, assignment)
    _add_followers(topology, assignment)
    _add_feeders(topology, assignment)
    for nodes in connected(topology, assignment.free()):
        assignment.claim(Group("other"), nodes)
    _add_constants(topology, assignment)
    return assignment


def connected(topology: Topology, nodes: Iterable[int]) -> list[list[int]]:
    """`nodes` in parts between which no activation flows."""
    parent = {position: position for position in nodes}

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for position in parent:
        for source in topology.sources[position]:
            if source in parent:
                parent[root(position)] = root(source)
    parts: dict[int, list[int]] = {}
    for position in sorted(parent):
        parts.setdefault(root(position), []).append(position)
    return list(parts.values())


def _claim_structures(t: Topology, assignment: Assignment, outputs: list[gs.Tensor]) -> None:
    norms = find_norms(t)
    attentions = find_attention(t)
    head = find_head(t, norms, outputs)
    taken = head.union(*(attention.nodes for attention in attentions))
    mlps = find_mlps(t, norms, taken)
    for bridge in find_bridges(t, attentions, mlps):
        assignment.claim(Group("bridge", bridge.layers[-2:]), bridge.nodes)
    groups = []
    for attention in attentions:  # the cores first: where heads feed each other, every head is upstream of the next
        anchors = (*attention.inputs, attention.softmax, *attention.outputs)
        groups.append(Group("attention", anchors, attention.softmax, attention.variant))
        assignment.claim(groups[-1], attention.core)
    for group, attention in zip(groups, attentions, strict=True):
        assignment.claim(group, attention.nodes)
    assignment.claim(Group("head", tuple(filter(t.is_linear, sorted(head)))), head)
    for mlp in mlps:
        assignment.claim(Group("mlp", mlp.linears), mlp.nodes)
    for norm in norms:
        assignment.claim(Group("norm", norm.nodes), norm.nodes)


def _claim_layers(t: Topology, assignment: Assignment) -> None:
    for position in assignment.free():
        if t.op(position).startswith(("Conv", "DeformConv")):
            assignment.claim(Group("conv", (position,)), [position])
        elif t.is_linear(position):
            assignment.claim(Group("other", (position,)), [position])


def _add_followers(t: Topology, assignment: Assignment) -> None:
    for position in assignment.free():
        if t.op(position) in FOLLOWERS and t.sources[position]:
            group = assignment.group[max(t.sources[position])]
            if group and (group.kind not in ("norm", "head") or (group.kind == "norm" and position in t.skips)):
                assignment.claim(group, [position])


def _add_feeders(t: Topology, assignment: Assignment) -> None:
    for position in reversed(assignment.free()):
        fed = [assignment.group[user] for user in t.users[position] if t.is_active(user)]
        group = fed[0] if fed and t.op(position) in FEEDERS else None
        if group and group.kind not in ("norm", "bridge") and all(other is group for other in fed):
            assignment.claim(group, [position])


def _add_constants(t: Topology, assignment: Assignment) -> None:
    rest = Group("other")
    for position in reversed(range(len(t.nodes))):
        if assignment.group[position] is None:
            users = t.users[position]
            assignment.claim((assignment.group[users[0]] if users else None) or rest, [position])
