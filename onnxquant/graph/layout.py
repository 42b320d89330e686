"""How a chain of Reshape and Transpose moves the values of a tensor, as a permutation of digits.

A value's position in memory is a number; the axes of a shape are its digits. Reshape splits digits and joins them,
Transpose changes their order. A digit is known by its size and by its stride in the tensor that the chain begins with:

    position = Σ digit · stride        an (n, s) splits into an (n / m, s · m) and an (m, s) inside it

and two that follow each other as these do are one again. Whatever the chain was, it reads the digits in the order of
their strides and writes them in another one. An axis that depends on the batch size is a digit like the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from onnxquant.graph.sizes import ONE, Shape, Size, product, reshape_target

SHORTEST_RUN = 8
"""Values that lie together before and after a Transpose, for it to be quick."""


class Digit(NamedTuple):
    """A part of a position.

    Attributes:
        size: values it takes.
        stride: what one step of it is in memory, in the tensor the chain begins with.
    """

    size: Size
    stride: Size


Axes: TypeAlias = "list[list[Digit]]"
"""The digits of every axis, outermost first; none on an axis of size 1."""


class Step(NamedTuple):
    """A node to be: Transpose by `perm`, or Reshape where that is None; from `before` to `after`."""

    before: Shape
    after: Shape
    perm: tuple[int, ...] | None = None


Steps: TypeAlias = "list[Step]"


def digits(shape: Shape) -> Axes | None:
    """Those of a tensor as it lies in memory; None where two axes depend on symbols."""
    axes: Axes = []
    for axis, size in enumerate(shape):
        stride = product(shape[axis + 1 :])
        if stride is None or size.times(stride) is None:
            return None
        axes.append([] if size == ONE else [Digit(size, stride)])
    return axes


def reshape(axes: Axes, shape: Shape) -> Axes | None:
    """The same digits on the axes of `shape`; None where a digit can't be split as that needs."""
    rest = joined([digit for axis in axes for digit in axis])
    result: Axes = []
    for size in reversed(shape):
        axis: list[Digit] = []
        wanted: Size | None = size
        while wanted != ONE:
            digit = rest.pop() if rest else None
            if digit is None or wanted is None:
                return None
            if wanted.over(digit.size) is None:  # the inner part of it is enough
                outer, stride = digit.size.over(wanted), digit.stride.times(wanted)
                if outer is None or stride is None:
                    return None
                rest.append(Digit(outer, stride))
                digit = Digit(wanted, digit.stride)
            axis.insert(0, digit)
            wanted = wanted.over(digit.size)
        result.insert(0, axis)
    return result if not rest else None


def joined(flat: Sequence[Digit]) -> list[Digit]:
    """`flat` with digits that follow each other in memory made one."""
    result: list[Digit] = []
    for digit in flat:
        size = result[-1].size.times(digit.size) if result else None
        if size is not None and result[-1].stride == digit.size.times(digit.stride):
            result[-1] = Digit(size, digit.stride)
        else:
            result.append(digit)
    return result


def in_memory(flat: Sequence[Digit]) -> list[Digit]:
    """`flat` in the order it has in memory: what lies outside of a symbol has the symbol in its stride."""
    return sorted(flat, key=lambda digit: (digit.stride.symbol != "", digit.stride.factor), reverse=True)


def grouped(flat: Sequence[Digit], order: Sequence[Digit]) -> list[list[Digit]]:
    """`flat` in parts that are also whole in `order`, a permutation of it."""
    place = {digit: position for position, digit in enumerate(order)}
    groups: list[list[Digit]] = []
    for digit in flat:
        if groups and place[digit] == place[groups[-1][-1]] + 1:
            groups[-1].append(digit)
        else:
            groups.append([digit])
    return groups


def equivalents(steps: Sequence[Step]) -> Iterator[Steps]:
    """Other steps that do the same; none where a digit can't be split or two axes depend on symbols."""
    before, after = steps[0].before, steps[-1].after
    axes = digits(before)
    for step in steps:
        if axes is not None:
            axes = reshape(axes, step.after) if step.perm is None else [axes[axis] for axis in step.perm]
    if axes is None:
        return
    target = joined([digit for axis in axes for digit in axis])
    source = in_memory(target)
    inwards = [*(digit for digit in source if digit != target[-1]), *target[-1:]]
    outwards = [*(digit for digit in target if digit != source[-1]), *source[-1:]]
    for orders in ([target], [inwards, target], [outwards, target]):
        if (found := _through(orders, source, before, after)) is not None:
            yield found
    moved = [joined(axis) for axis in axes]
    if all(len(axis) < 2 for axis in moved):  # the axes as they shall be, in the order of memory
        source = in_memory([digit for axis in moved for digit in axis])
        in_order = sorted(range(len(moved)), key=lambda axis: source.index(moved[axis][0]) if moved[axis] else -1)
        split = tuple(after[axis] for axis in in_order)
        last = Step(split, after, tuple(in_order.index(axis) for axis in range(len(moved))))
        yield [last] if split == before else [Step(before, split), last]


def _through(orders: list[list[Digit]], order: list[Digit], shape: Shape, last: Shape) -> Steps | None:
    """A Transpose to each of `orders`, and the Reshapes around them.

    Args:
        orders: of the digits, one after another.
        order: what they are in at first.
        shape: what the tensor has at first.
        last: what it shall have at last.
    """
    steps: Steps = []

    def change(to: Shape) -> None:
        nonlocal shape
        if to != shape:
            steps.append(Step(shape, to))
            shape = to

    for new in orders:
        if new == order:
            continue
        groups = grouped(new, order)
        axes = sorted(groups, key=lambda group: order.index(group[0]))
        dims = [product(digit.size for digit in group) for group in axes]
        if None in dims:
            return None
        change(tuple(size for size in dims if size is not None))
        perm = tuple(axes.index(group) for group in groups)
        steps.append(Step(shape, tuple(shape[axis] for axis in perm), perm))
        shape, order = steps[-1].after, new
    change(last)
    return steps if all(step.perm is not None or reshape_target(step.after) for step in steps) else None


def cost(steps: Sequence[Step]) -> tuple[int, int, int]:
    """Slow Transposes, Transposes, nodes."""
    transposes = [step for step in steps if step.perm is not None]
    return sum(map(_is_slow, transposes)), len(transposes), len(steps)


def _is_slow(step: Step) -> bool:
    """Whether a Transpose moves values one by one: neither one axis alone, nor runs of them."""
    perm = [axis for axis in step.perm or () if step.before[axis] != Size(1)]
    stay = sorted(perm)
    if any([a for a in perm if a != axis] == [a for a in stay if a != axis] for axis in perm):
        return False
    run = 1
    for position in range(len(perm) - 1, -1, -1):
        if perm[position] != stay[position] or step.before[perm[position]].symbol:
            break
        run *= step.before[perm[position]].factor
    return run < SHORTEST_RUN
