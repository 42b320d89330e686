"""Normalisations, as in inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxquant.torch_graph.operators.operator import plain


def batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float, momentum: float
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)  # momentum only matters in training


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float, num_groups: int) -> Tensor:
    return torch.group_norm(x, num_groups, scale, bias, epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float) -> Tensor:
    return torch.group_norm(x, x.shape[1], scale, bias, epsilon)  # instance_norm refuses images of one pixel


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float) -> Tensor:
    shape = x.shape[axis:]
    return F.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def lp_norm(x: Tensor, *, axis: int, p: int) -> Tensor:
    return x / torch.linalg.vector_norm(x, p, axis, keepdim=True)


def rms_norm(x: Tensor, scale: Tensor, *, axis: int, epsilon: float) -> Tensor:
    shape = x.shape[axis:]
    return F.rms_norm(x, shape, scale.expand(shape), epsilon)


OPERATORS = plain(
    {
        "BatchNormalization": batch_norm,
        "GroupNormalization": group_norm,
        "InstanceNormalization": instance_norm,
        "LayerNormalization": layer_norm,
        "LpNormalization": lp_norm,
        "RMSNormalization": rms_norm,
    }
)
