"""Sizes of axes that hold for every batch size at once: whole numbers, or whole numbers times one symbol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias


class Size(NamedTuple):
    """`factor`, times the value of `symbol` where there is one."""

    factor: int
    symbol: str = ""

    def times(self, other: Size) -> Size | None:
        """The product; None for a symbol times a symbol."""
        if self.symbol and other.symbol:
            return None
        return Size(self.factor * other.factor, self.symbol or other.symbol)

    def over(self, other: Size) -> Size | None:
        """The quotient; None where it isn't a whole number for every value of the symbol."""
        if other.factor == 0 or self.factor % other.factor or other.symbol not in ("", self.symbol):
            return None
        return Size(self.factor // other.factor, "" if other.symbol else self.symbol)


Shape: TypeAlias = "tuple[Size, ...]"
Sizes: TypeAlias = "tuple[Size | None, ...]"
"""A shape, or integers that a tensor holds; None stands for what isn't known."""

ONE = Size(1)


def product(sizes: Iterable[Size | None]) -> Size | None:
    """None where a size is unknown, or two have a symbol."""
    result: Size | None = ONE
    for size in sizes:
        result = None if result is None or size is None else result.times(size)
    return result


def complete(sizes: Sizes | None) -> Shape | None:
    """`sizes`; None unless all are known."""
    return tuple(size for size in sizes if size is not None) if sizes is not None and None not in sizes else None


def reshape_target(shape: Shape) -> list[int] | None:
    """What makes a Reshape write `shape` whatever the symbol's value; None where two axes depend on symbols."""
    target = [-1 if size.symbol else size.factor for size in shape]
    return target if target.count(-1) < 2 and 0 not in target else None


def static_axes(shape: Shape) -> list[int | None]:
    """`shape` as graphsurgeon writes it: None for what depends on a symbol."""
    return [None if size.symbol else size.factor for size in shape]
