"""What the table holds for each operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operator:
    """The torch form of an ONNX operator.

    Attributes:
        function: from inputs and attributes to the first output; to all of them where there may be `several`.
        numbers: positions of the inputs that it takes as Python numbers, a list or (from a tensor without axes) one:
            shapes, axes and the like, which torch wants that way.
        several: whether it returns a tuple of all outputs; it is then told their number as `outputs`.
    """

    function: Callable[..., Any]
    numbers: tuple[int, ...] = ()
    several: bool = False


def plain(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Operator]:
    """Operators with one output that take tensors only."""
    return {name: Operator(function) for name, function in functions.items()}
