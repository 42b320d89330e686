"""Activation functions, and Softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxquant.torch_graph.operators.operator import plain


def celu(x: Tensor, *, alpha: float) -> Tensor:
    return F.celu(x, alpha)


def elu(x: Tensor, *, alpha: float) -> Tensor:
    return F.elu(x, alpha)


def gelu(x: Tensor, *, approximate: str) -> Tensor:
    return F.gelu(x, approximate=approximate)


def hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def leaky_relu(x: Tensor, *, alpha: float) -> Tensor:
    return F.leaky_relu(x, alpha)


def log_softmax(x: Tensor, *, axis: int) -> Tensor:
    return torch.log_softmax(x, axis)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)  # the slope broadcasts to x, from the right


def selu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    return gamma * F.elu(x, alpha)


def softmax(x: Tensor, *, axis: int) -> Tensor:
    return torch.softmax(x, axis)


def swish(x: Tensor, *, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def thresholded_relu(x: Tensor, *, alpha: float) -> Tensor:
    return F.threshold(x, alpha, 0.0)


OPERATORS = plain(
    {
        "Celu": celu,
        "Elu": elu,
        "Gelu": gelu,
        "HardSigmoid": hard_sigmoid,
        "HardSwish": F.hardswish,
        "LeakyRelu": leaky_relu,
        "LogSoftmax": log_softmax,
        "Mish": F.mish,
        "PRelu": prelu,
        "Relu": torch.relu,
        "Selu": selu,
        "Sigmoid": torch.sigmoid,
        "Softmax": softmax,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Swish": swish,
        "Tanh": torch.tanh,
        "ThresholdedRelu": thresholded_relu,
    }
)
