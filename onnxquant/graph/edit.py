"""Small edits of a graph that several passes make."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import onnx_graphsurgeon as gs


class UniqueNames:
    """Hands out names that nothing in a graph has yet: graphsurgeon merges tensors of one name without a word.

    Args:
        taken: names in use.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    @classmethod
    def of_tensors(cls, graph: gs.Graph) -> UniqueNames:
        """For new tensors of `graph`; those of its subgraphs count, which may read from outside."""
        graphs = [graph, *graph.subgraphs(recursive=True)]
        return cls(name for each in graphs for name in each.tensors())

    def __call__(self, base: str) -> str:
        """`base`, or `base` with the first number that makes it new."""
        candidates = itertools.chain([base], (f"{base}_{n}" for n in itertools.count(1)))
        name = next(name for name in candidates if name not in self._taken)
        self._taken.add(name)
        return name


def replace_uses(tensor: gs.Tensor, replacement: gs.Tensor, readers: Iterable[gs.Node] | None = None) -> None:
    """Let every node that reads `tensor`, or those of `readers`, read `replacement`; graph outputs stay."""
    for consumer in list(tensor.outputs if readers is None else readers):
        for position, used in enumerate(consumer.inputs):
            if used is tensor:
                consumer.inputs[position] = replacement
