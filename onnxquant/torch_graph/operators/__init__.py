"""The table of ONNX operators that have a torch form, in the main domain and from opset 13 on.

A function takes the inputs in their order, None for absent ones, and the attributes by name, with the defaults of the
ONNX schema filled in. What has been an attribute and became an input later (the axes of ReduceMean) is one parameter
for both. An attribute that a function doesn't take is refused, unless it has its default.
"""

from __future__ import annotations

from onnxquant.torch_graph.operators import (
    activations,
    arithmetic,
    indexing,
    linear,
    norms,
    reductions,
    resize,
    shapes,
    windows,
)
from onnxquant.torch_graph.operators.operator import Operator

MODULES = (activations, arithmetic, indexing, linear, norms, reductions, resize, shapes, windows)

OPERATORS: dict[str, Operator] = {name: operator for module in MODULES for name, operator in module.OPERATORS.items()}
