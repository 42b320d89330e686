"""What the makers of nodes share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike

from onnxquant.graph.edit import UniqueNames


class Maker:
    """Makes nodes for the way of one tensor, with names that nothing in the graph has yet; adds none to the graph.

    Attributes:
        graph: that the nodes are for; functions are added to it.
        dtype: of the tensor.

    Args:
        graph: see there.
        tensor: float; its name begins those of all that is made.
        tensors: hands out names of tensors.
        nodes: hands out names of nodes.
    """

    def __init__(self, graph: gs.Graph, tensor: gs.Tensor, tensors: UniqueNames, nodes: UniqueNames) -> None:
        self.graph, self.dtype = graph, np.dtype(tensor.dtype or np.float32)
        self._tensor, self._tensors, self._nodes = tensor, tensors, nodes

    def constant(self, suffix: str, values: ArrayLike, dtype: Any = None) -> gs.Constant:
        """An initializer, in the tensor's dtype unless another is given."""
        return gs.Constant(self._named(suffix), np.asarray(values, self.dtype if dtype is None else dtype))

    def node(
        self,
        op: str,
        inputs: list[gs.Tensor],
        suffix: str,
        *,
        attributes: dict[str, Any] | None = None,
        dtype: Any = None,
        shape: Any = "as the tensor",
        domain: str | None = None,
    ) -> gs.Node:
        """A node with one output, of the tensor's dtype and shape unless others are given.

        Args:
            op: operator.
            inputs: see there.
            suffix: of the output's name.
            attributes: of the node.
            dtype: of the output.
            shape: of the output; None where it isn't known.
            domain: of the operator.
        """
        shape = self._tensor.shape if isinstance(shape, str) else shape
        output = gs.Variable(self._named(suffix), self.dtype if dtype is None else dtype, shape)
        name = self._nodes(f"{self._tensor.name}_{op}")
        return gs.Node(op, name, attributes or {}, inputs, [output], domain)

    def _named(self, suffix: str) -> str:
        return self._tensors(f"{self._tensor.name}_{suffix}")
