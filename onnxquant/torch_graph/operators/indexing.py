"""Operators that pick values by position, or put them there."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxquant.torch_graph.operators.operator import Operator, plain


def gather(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    axis %= x.ndim
    taken = x.index_select(axis, _from_start(indices, x.shape[axis]).reshape(-1))
    return taken.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int) -> Tensor:
    shape = indices.shape[:-1]
    batch = [
        torch.arange(size, device=x.device).reshape(-1, *[1] * (len(shape) - axis - 1)).expand(shape)
        for axis, size in enumerate(shape[:batch_dims])
    ]
    return x[(*batch, *indices.long().unbind(-1))]


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return torch.index_put(x, indices.long().unbind(-1), updates)


def slices(
    x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> Tensor:
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = range(x.shape[axis])[start:end:step]  # ONNX clamps as Python does
        if step > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(taken.start, taken.stop, step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


def split(x: Tensor, sizes: list[int] | None = None, *, axis: int, outputs: int, num_outputs: int = 0) -> list[Tensor]:
    even = -(-x.shape[axis] // outputs)  # the last part is smaller where it doesn't come out even
    return list(torch.split(x, even if sizes is None else sizes, axis))


def trilu(x: Tensor, k: int | None = None, *, upper: int) -> Tensor:
    return torch.triu(x, k or 0) if upper else torch.tril(x, k or 0)


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Indices, of which negative ones count from the end."""
    return torch.where(indices < 0, indices + size, indices).long()


OPERATORS = plain(
    {"Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd, "ScatterND": scatter_nd}
) | {
    "Slice": Operator(slices, numbers=(1, 2, 3, 4)),
    "Split": Operator(split, numbers=(1,), several=True),
    "Trilu": Operator(trilu, numbers=(1,)),
}
