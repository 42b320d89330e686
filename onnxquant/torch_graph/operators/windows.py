"""Operators with a sliding window: convolutions and pools, over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxquant.errors import OnnxquantError
from onnxquant.torch_graph.operators.operator import plain

AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str,
    group: int,
    dilations: list[int] | None = None,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    ones = [1] * (x.ndim - 2)
    dilations, strides = dilations or ones, strides or ones
    spans = _spans(weight.shape[2:], dilations)
    begin, end = _pads(x.shape[2:], spans, strides, pads, auto_pad)
    if begin != end:
        x, begin = _padded(x, begin, end), [0] * len(ones)
    return torch.convolution(x, weight, bias, strides, begin, dilations, False, [0] * len(ones), group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    group: int,
    dilations: list[int] | None = None,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = x.ndim - 2
    ones, zeros = [1] * rank, [0] * rank
    begin, end = (pads[:rank], pads[rank:]) if pads else (zeros, zeros)
    cropped = begin if begin == end else zeros  # torch crops both sides alike
    args = (strides or ones, cropped, dilations or ones, True, output_padding or zeros, group)
    y = torch.convolution(x, weight, bias, *args)
    return y if begin == end else _padded(y, [-size for size in begin], [-size for size in end])


def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str,
    ceil_mode: int,
    count_include_pad: int,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    if dilations and max(dilations) > 1:
        raise OnnxquantError("dilations of an average aren't supported; export the model without them")
    pool, strides = AVERAGE_POOLS[len(kernel_shape) - 1], strides or [1] * len(kernel_shape)
    begin, end = _pads(x.shape[2:], kernel_shape, strides, pads, auto_pad)
    within = all(2 * pad <= size for pad, size in zip(begin, kernel_shape, strict=True))  # torch allows no more
    if begin == end and within and not ceil_mode:
        return pool(x, kernel_shape, strides, begin, False, bool(count_include_pad))
    used = _used_end(x.shape[2:], kernel_shape, strides, begin, end, ceil_mode)
    counted = x.new_ones(1, 1, *x.shape[2:])  # an average's divisor is the number of values that count
    if count_include_pad:
        counted = _padded(counted, begin, end, 1.0)
        counted = _padded(counted, [0] * len(end), [new - old for new, old in zip(used, end, strict=True)])
    else:
        counted = _padded(counted, begin, used)
    return pool(_padded(x, begin, used), kernel_shape, strides) / pool(counted, kernel_shape, strides)


def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str,
    ceil_mode: int,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    ones = [1] * len(kernel_shape)
    dilations, strides = dilations or ones, strides or ones
    spans = _spans(kernel_shape, dilations)
    begin, end = _pads(x.shape[2:], spans, strides, pads, auto_pad)
    padded = _padded(x, begin, _used_end(x.shape[2:], spans, strides, begin, end, ceil_mode), -torch.inf)
    return MAX_POOLS[len(ones) - 1](padded, kernel_shape, strides, dilation=dilations)


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def _spans(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Sizes of the window, the gaps of dilation included."""
    return [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]


def _pads(
    sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int], pads: list[int] | None, auto_pad: str
) -> tuple[list[int], list[int]]:
    """What is padded before and after every spatial axis."""
    rank = len(spans)
    if auto_pad in ("NOTSET", "VALID"):
        pads = pads if pads and auto_pad == "NOTSET" else [0] * 2 * rank
        return pads[:rank], pads[rank:]
    totals = [
        max((-(-size // stride) - 1) * stride + span - size, 0)
        for size, span, stride in zip(sizes, spans, strides, strict=True)
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def _used_end(
    sizes: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    ceil_mode: int,
) -> list[int]:
    """The padding at the end with which the windows come out even; negative where the last values are not used.

    With `ceil_mode` a last window may reach beyond the padding, but it starts before the padding at the end does.
    """
    used = []
    for size, span, stride, before, after in zip(sizes, spans, strides, begin, end, strict=True):
        room = size + before + after - span
        steps = -(-room // stride) if ceil_mode else room // stride
        if ceil_mode and steps * stride >= size + before:
            steps -= 1
        used.append(steps * stride + span - size - before)
    return used


def _padded(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    if not any(begin) and not any(end):
        return x
    pairs = reversed(list(zip(begin, end, strict=True)))  # torch pads from the last axis on
    return F.pad(x, [side for pair in pairs for side in pair], value=value)


OPERATORS = plain(
    {
        "AveragePool": average_pool,
        "Conv": conv,
        "ConvTranspose": conv_transpose,
        "GlobalAveragePool": global_average_pool,
        "GlobalMaxPool": global_max_pool,
        "MaxPool": max_pool,
    }
)
