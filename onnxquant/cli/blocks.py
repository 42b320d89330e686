"""`onnxquant blocks`: the structure that the passes go by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from onnxquant.cli.options import Json, ModelPath

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from rich.tree import Tree

    from onnxquant.blocks import Block, Blocks

COLOURS = {"attention": "magenta", "mlp": "cyan", "conv": "green", "bridge": "yellow", "norm": "blue", "head": "red"}
OPERATORS_SHOWN = 6
DEEPEST = 32
"""Levels of modules shown; a file may claim any number."""


def blocks_command(model: ModelPath, as_json: Json = False) -> None:
    """Show the blocks of a model: convolutions, attention, MLPs, bridges, norms and the head."""
    from onnxquant.cli.options import open_console, print_json, shown
    from onnxquant.graph.model import load
    from onnxquant.passes.classify_blocks import classify
    from onnxquant.pipeline import canonicalise

    loaded = load(model)
    canonicalise(loaded)
    blocks = classify(loaded.graph, loaded)
    if as_json:
        print_json(_document(str(model), blocks))
        return
    every_node = [node for block in blocks.blocks for node in block.nodes]
    console = open_console()
    console.print(_tree(f"{shown(str(model))}: {_size(every_node)}", blocks))
    console.print(", ".join(f"{count} {kind}" for kind, count in blocks.count().items()) or "no nodes")


def _document(name: str, blocks: Blocks) -> dict[str, Any]:
    return {
        "model": name,
        "counts": blocks.count(),
        "blocks": [
            {
                "kind": block.kind,
                "scope": block.scope,
                "variant": block.variant,
                "nodes": [node.name for node in block.nodes],
                "parameters": _parameters(block.nodes),
            }
            for block in blocks.blocks
        ],
    }


def _parameters(nodes: Iterable[gs.Node]) -> int:
    """Elements of the constants that `nodes` read; scalars, and the integers that shapes are made of, don't count."""
    import numpy as np
    import onnx_graphsurgeon as gs

    constants = {id(tensor): tensor for node in nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)}
    shapes = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(bool))
    sizes = (math.prod(tensor.shape) for tensor in constants.values() if tensor.dtype not in shapes)
    return sum(size for size in sizes if size > 1)


class _Module:
    """A module with its blocks and submodules, in the order of the graph."""

    def __init__(self) -> None:
        self.entries: dict[Any, _Module | Block] = {}

    def add(self, block: Block) -> None:
        module = self
        for part in block.scope.split(".", DEEPEST) if block.scope else []:
            child = module.entries.setdefault(part, _Module())
            assert isinstance(child, _Module)
            module = child
        module.entries[id(block)] = block

    def draw(self, tree: Tree) -> None:
        from onnxquant.cli.options import shown

        for part, entry in self.entries.items():
            names = []
            while isinstance(entry, _Module):
                names.append(part)
                if len(entry.entries) > 1:
                    break
                part, entry = next(iter(entry.entries.items()))
            label = shown(".".join(names))
            if isinstance(entry, _Module):
                entry.draw(tree.add(f"[bold]{label}[/bold]"))
            else:
                tree.add(_line(entry, label))


def _tree(title: str, blocks: Blocks) -> Tree:
    from rich.tree import Tree

    root = _Module()
    for block in blocks.blocks:
        root.add(block)
    tree = Tree(title)
    root.draw(tree)
    return tree


def _line(block: Block, label: str) -> str:
    from onnxquant.cli.options import shown
    from onnxquant.graph.topology import SHAPE_OPS

    kind = f"{block.kind} ({block.variant})" if block.variant else block.kind
    telling = [node.op for node in block.nodes if node.op not in SHAPE_OPS | {"Shape"}]
    counted = Counter(telling or [node.op for node in block.nodes]).most_common()
    operators = ", ".join(f"{count} {shown(op)}" if count > 1 else shown(op) for op, count in counted[:OPERATORS_SHOWN])
    more = ", ..." if len(counted) > OPERATORS_SHOWN else ""
    colour = COLOURS.get(block.kind, "default")
    name = f"{label}: " if label else ""
    return f"{name}[{colour}]{kind}[/{colour}], {_size(block.nodes)}: {operators}{more}"


def _size(nodes: list[gs.Node]) -> str:
    parameters = _parameters(nodes)
    counted = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"{counted}, {parameters:,} parameters" if parameters else counted
