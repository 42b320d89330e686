"""Elementwise arithmetic, comparison and logic; operands broadcast as in numpy."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from onnx import helper
from torch import Tensor

from onnxquant.torch_graph.operators.operator import plain


def cast(x: Tensor, *, to: int) -> Tensor:
    return x.to(torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(to))).dtype)


def cast_like(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def dropout(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0) -> Tensor:
    return x  # only training drops values


def identity(x: Tensor) -> Tensor:
    return x


def maximum(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


def minimum(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


def modulo(x: Tensor, y: Tensor, *, fmod: int) -> Tensor:
    return torch.fmod(x, y) if fmod else torch.remainder(x, y)


def power(x: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(x, exponent).to(x.dtype)


def total(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors)


OPERATORS = plain(
    {
        "Abs": torch.abs,
        "Add": torch.add,
        "And": torch.logical_and,
        "Cast": cast,
        "CastLike": cast_like,
        "Ceil": torch.ceil,
        "Clip": clip,
        "Cos": torch.cos,
        "Div": divide,
        "Dropout": dropout,
        "Equal": torch.eq,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "Identity": identity,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Log": torch.log,
        "Max": maximum,
        "Min": minimum,
        "Mod": modulo,
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "Pow": power,
        "Reciprocal": torch.reciprocal,
        "Round": torch.round,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sqrt": torch.sqrt,
        "Sub": torch.sub,
        "Sum": total,
        "Where": torch.where,
        "Xor": torch.logical_xor,
    }
)
