"""Reductions over axes, and CumSum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxquant.torch_graph.operators.operator import Operator, plain


def reduction(reduce: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """The ONNX operator for a function of (tensor, axes, whether they stay, with size 1)."""

    def reduced(x: Tensor, axes: list[int] | None = None, *, keepdims: int, noop_with_empty_axes: int = 0) -> Tensor:
        if not axes and noop_with_empty_axes:
            return reduce(x.unsqueeze(-1), [-1], False)
        return reduce(x, axes or list(range(x.ndim)), bool(keepdims))

    return Operator(reduced, numbers=(1,))


def total(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)  # torch sums integers in int64 otherwise


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def norm(order: int) -> Callable[[Tensor, list[int], bool], Tensor]:
    return lambda x, axes, keep: torch.linalg.vector_norm(x, order, axes, keep)


def arg_max(x: Tensor, *, axis: int, keepdims: int) -> Tensor:
    return torch.argmax(x, axis, bool(keepdims))


def arg_min(x: Tensor, *, axis: int, keepdims: int) -> Tensor:
    return torch.argmin(x, axis, bool(keepdims))


def cumulative_sum(x: Tensor, axis: int, *, exclusive: int, reverse: int) -> Tensor:
    sums = x.flip(axis).cumsum(axis, dtype=x.dtype).flip(axis) if reverse else x.cumsum(axis, dtype=x.dtype)
    return sums - x if exclusive else sums


OPERATORS = plain({"ArgMax": arg_max, "ArgMin": arg_min}) | {
    "CumSum": Operator(cumulative_sum, numbers=(1,)),
    "ReduceL1": reduction(norm(1)),
    "ReduceL2": reduction(norm(2)),
    "ReduceLogSum": reduction(lambda x, axes, keep: total(x, axes, keep).log()),
    "ReduceLogSumExp": reduction(torch.logsumexp),
    "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(torch.mean),
    "ReduceMin": reduction(torch.amin),
    "ReduceProd": reduction(product),
    "ReduceSum": reduction(total),
    "ReduceSumSquare": reduction(lambda x, axes, keep: total(x.square(), axes, keep)),
}
