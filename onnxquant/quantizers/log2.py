"""log2 quantization of post-Softmax activations (EfficientQuant, Eqs. 4-6, corrected).

    Amin = log2(a_min + ε)        Amax = log2(a_max + ε)        Δ = (Amax - Amin) / (2^b - 1)
    q = clip(round((log2(a + ε) - Amin) / Δ), 0, 2^b - 1)        â = 2^(q Δ + Amin)

As printed, Eq. 5 negates log2(a + ε) but not its zero-point, and every code saturates; and without ε in the range,
a_min = 0 gives log2(0).

In ONNX this is a pair of functions in the domain ``onnxquant``, bodies of standard ops, with int8 codes ``q - 2^(b-1)``
between them: zero-point 0 and no uint8, so that TensorRT takes them too. The logarithm is the natural one (ONNX has no
other), so steps and offsets are stored as multiples of ln 2.
"""

from __future__ import annotations

from math import log, log2
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from onnxquant.quantizers.arrays import Array, namespace

DEFAULT_EPSILON = 1e-5
"""EfficientQuant, section 3.1."""

FINEST_STEP = 1e-4
"""Octaves. A constant tensor has Δ = 0; with this one its value keeps a relative error of 1e-4. The float32 rounding of
a logarithm (2e-6) stays far below half a step, so that clipped values can't reach codes outside their range."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Log2Quantizer:
    """Parameters of one tensor with values in [0, 1].

    Attributes:
        bits: 2 to 8.
        minimum: smallest value seen, a_min.
        maximum: largest value seen, a_max.
        epsilon: what is added before the logarithm; the smallest value that can be told from 0.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    minimum: Annotated[float, Field(ge=0, le=1)]
    maximum: Annotated[float, Field(ge=0, le=1)]
    epsilon: Annotated[float, Field(gt=0, le=0.1)] = DEFAULT_EPSILON
    kind: Literal["log2"] = "log2"

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise ValueError("minimum must not be above maximum")

    @classmethod
    def from_range(cls, minimum: float, maximum: float, *, bits: int, epsilon: float) -> Log2Quantizer:
        """The quantizer that covers [minimum, maximum], a range within [0, 1].

        A Softmax in float16 or with fused rounding may exceed 1 by a little: the range is clipped.
        """
        low, high = float(np.clip(minimum, 0, 1)), float(np.clip(maximum, 0, 1))
        return cls(bits, low, high, epsilon)

    def describe(self) -> str:
        """Its parameters in a line."""
        return f"{self.minimum:.3g} to {self.maximum:.3g}, ε {self.epsilon:g}"

    @property
    def scale(self) -> float:
        """Δ · ln 2, a float32 number, never below `FINEST_STEP`."""
        octaves = (log2(self.maximum + self.epsilon) - log2(self.minimum + self.epsilon)) / (2**self.bits - 1)
        return float(np.float32(max(octaves, FINEST_STEP) * log(2)))

    @property
    def offset(self) -> float:
        """(Amin + 2^(b-1) Δ) · ln 2, a float32 number: the logarithm that code 0 of the int8 codes stands for."""
        return float(np.float32(log(self.minimum + self.epsilon) + 2 ** (self.bits - 1) * self.scale))

    @property
    def clip_range(self) -> tuple[float, float]:
        """[a_min, a_max] as float32 numbers: what values are clipped to, so that codes below 8 bits stay in their
        range.
        """
        return float(np.float32(self.minimum)), float(np.float32(self.maximum))

    @property
    def code_range(self) -> tuple[int, int]:
        half = 2 ** (self.bits - 1)
        return -half, half - 1

    def quantize(self, x: Array) -> Array:
        """float32 values -> codes in `code_range` as float32 whole numbers, shape kept.

        Step for step what the ONNX function does in float32.
        """
        xp = namespace(x)
        logarithm = xp.log(xp.clip(x, *self.clip_range) + float(np.float32(self.epsilon))) - self.offset
        return xp.clip(xp.round(logarithm / self.scale), *self.code_range)

    def dequantize(self, codes: Array) -> Array:
        """Codes -> float32 values."""
        xp = namespace(codes)
        return xp.exp(xp.astype(codes, xp.float32) * self.scale + self.offset)

    def fake_quantize(self, x: Array) -> Array:
        """What the runtime computes with instead of `x`."""
        return self.dequantize(self.quantize(x))
