"""What `classify_blocks` finds and the other passes ask: the blocks of a CNN-Transformer hybrid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import onnx_graphsurgeon as gs

Kind = Literal["conv", "attention", "mlp", "bridge", "norm", "head", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass
class Block:
    """A group of nodes that belong together; every node of a graph is in exactly one block.

    Attributes:
        kind: what the block is.
        nodes: its nodes in topological order.
        scope: the module it came from (``stages.2.1.transformer.0.attn``), "" where the file has no scopes. A label
            only: the kind never depends on it, unless a rule of the recipe says so.
        softmax: attention only: the node whose output is the attention probabilities.
        variant: attention only: "dot" (Q·K, Softmax, ·V), "factor" (Softmax on K) or "linear" (MobileViTv2's separable
            form).
    """

    kind: Kind
    nodes: list[gs.Node] = field(repr=False)
    scope: str = ""
    softmax: gs.Node | None = field(default=None, repr=False)
    variant: str = ""


@dataclass
class Blocks:
    """All blocks of a graph, in topological order of their first node."""

    blocks: list[Block]

    def __post_init__(self) -> None:
        self._of = {node.name: block for block in self.blocks for node in block.nodes}

    def of(self, node: gs.Node) -> Block | None:
        """The block `node` belongs to; None for a node that was inserted after the analysis."""
        return self._of.get(node.name)

    def of_kind(self, *kinds: Kind) -> Iterable[Block]:
        return (block for block in self.blocks if block.kind in kinds)

    def count(self) -> dict[str, int]:
        """Number of blocks of every kind that occurs, in the order of `KINDS`."""
        counted = Counter(block.kind for block in self.blocks)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}
