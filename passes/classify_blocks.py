"""Sort a graph's nodes into blocks: conv, attention, mlp, bridge, norm, head, other.

EfficientQuant's Algorithm 1 walks a module tree and looks at a layer's type, then at its name. An ONNX file may have no
names to speak of, so here a block's kind follows from the operators and how they are connected; names only label it.

    1. structure     attention, bridges, head, MLPs and norms, as `onnxquant.graph.attention`, `.bridges` and
                     `.parts` find them
    2. precedence    a node that two of them claim goes to the first of: bridge, attention, head, mlp, norm
    3. op type       every other Conv begins a block of kind conv, every other linear layer one of kind other
    4. followers     arithmetic, activation functions, BatchNormalization and shape operators join the block whose
                     value they take (the latest of several): so a residual Add belongs to the branch it closes.
                     Norms and the head take none, but for a residual Add after a norm
    5. feeders       a pool, shape operator or arithmetic that feeds one block only joins it, unless that is a norm
                     or a bridge: squeeze-excite's pool, Swin's windows
    6. the rest      nodes that are connected form a block of kind other: token mixers without weights, a Softmax
                     that isn't attention, Attention operators
    7. constants     shape arithmetic joins the block that uses it first

A rule of the recipe takes every node it matches out of its block, and gives it the rule's kind. A recognised structure
that loses nodes this way stays what it was; an attention that loses its Softmax has none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import ClassVar

import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from onnxquant.blocks import Block, Blocks, Kind
from onnxquant.graph.grouping import Assignment, Group, connected, group_nodes
from onnxquant.graph.model import Model
from onnxquant.graph.topology import Topology
from onnxquant.pass_manager import Pass, PassContext, PassResult


class Rule(BaseModel):
    """Nodes that are of a kind because the user says so. Both conditions must hold where both are given.

    Attributes:
        kind: what the nodes are.
        op_type: their operator.
        name: a regular expression, searched in the node's name and in its module scope.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    op_type: str | None = None
    name: str | None = None

    @field_validator("name")
    @classmethod
    def _compiles(cls, name: str | None) -> str | None:
        try:
            re.compile(name or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return name

    @model_validator(mode="after")
    def _has_condition(self) -> Rule:
        if self.op_type is None and self.name is None:
            raise ValueError("a rule needs op_type, name or both; without either it would match every node")
        return self

    def matches(self, node: gs.Node, model: Model) -> bool:
        if self.op_type not in (None, node.op):
            return False
        return self.name is None or any(re.search(self.name, text) for text in (node.name, model.scope(node)))


class ClassifyBlocks(Pass):
    """Find the conv blocks, attention, MLPs, bridges, norms and head of a network, by structure.

    Attributes:
        rules: what is to be seen otherwise; the first rule that matches a node counts.
    """

    rules: tuple[Rule, ...] = ()

    provides: ClassVar[frozenset[str]] = frozenset({"blocks"})

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        context.blocks = classify(graph, context.model, self.rules)
        counted = context.blocks.count()
        idle = [rule for rule in self.rules if not any(rule.matches(node, context.model) for node in graph.nodes)]
        notes = [f"rule {rule.model_dump(exclude_none=True)} matches no node" for rule in idle]
        found = ", ".join(f"{count} {kind}" for kind, count in counted.items())
        if not set(counted) - {"other"}:
            return PassResult(False, (f"no known structure found in {len(graph.nodes)} nodes", *notes))
        return PassResult(False, (found, *notes))


def classify(graph: gs.Graph, model: Model, rules: Sequence[Rule] = ()) -> Blocks:
    """Every node of `graph` in exactly one block.

    Args:
        graph: constants folded; not changed.
        model: knows the nodes' scopes.
        rules: override the structure.
    """
    topology = Topology(graph)
    assignment = group_nodes(topology, graph.outputs)
    _apply_rules(assignment, model, rules)
    return Blocks([_to_block(group, topology, model) for group in assignment.groups()])


def _apply_rules(assignment: Assignment, model: Model, rules: Sequence[Rule]) -> None:
    """Move the nodes that rules match to blocks of their own: those of one kind that are connected become one."""
    matched: dict[Kind, list[int]] = {}
    if rules:
        for position, node in enumerate(assignment.topology.nodes):
            rule = next((rule for rule in rules if rule.matches(node, model)), None)
            if rule:
                matched.setdefault(rule.kind, []).append(position)
    for kind, nodes in matched.items():
        for part in connected(assignment.topology, nodes):
            group = Group(kind)
            if kind == "attention":
                group.softmax = next(
                    (position for position in part if assignment.topology.op(position) == "Softmax"), None
                )
            for position in part:
                previous = assignment.group[position]
                if previous and position == previous.softmax:
                    if position == group.softmax:
                        group.variant = previous.variant
                    previous.softmax = None
                assignment.group[position] = group


def _to_block(group: Group, topology: Topology, model: Model) -> Block:
    nodes = [topology.nodes[position] for position in group.nodes]
    softmax = None if group.softmax is None else topology.nodes[group.softmax]
    labelled = [topology.nodes[position] for position in group.anchors if position in group.nodes] or nodes
    return Block(group.kind, nodes, _common_scope([_scope(node, model) for node in labelled]), softmax, group.variant)


def _scope(node: gs.Node, model: Model) -> str:
    """The module a node came from.

    A Conv that the dynamo exporter has folded BatchNormalization into reports the scope of that; its weight kept the
    name.
    """
    scope = model.scope(node)
    if node.op == "Conv" and scope:
        weight = str(node.inputs[1].name).removesuffix(".weight")
        if weight != node.inputs[1].name and weight.rpartition(".")[0] == scope.rpartition(".")[0]:
            return weight
    return scope


def _common_scope(scopes: list[str]) -> str:
    """The innermost module that holds all of `scopes`; the first one's where they have none in common."""
    known = [scope.split(".") for scope in scopes if scope]
    if not known:
        return ""
    common = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*known, strict=False)))
    return ".".join(parts[0] for parts in common) or ".".join(known[0])
