"""Uniform quantization (EfficientQuant, Eqs. 1-3, corrected).

    Δ = (max - min) / (2^b - 1)        Z = round(-min / Δ)
    q = clip(round(x / Δ) + Z, 0, 2^b - 1)        x̂ = (q - Z) Δ

The range always includes 0, so that Z is a code and 0 is exact. As printed, Eq. 2 divides ``x - min`` by Δ and then
adds Z again, which shifts every code by Z and clips most of them. Codes are ONNX QuantizeLinear's: round half to even,
saturate.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic.dataclasses import dataclass

from onnxquant.quantizers.arrays import Array, namespace

Float32 = Annotated[
    NDArray[np.float32],
    PlainValidator(lambda values: np.asarray(values, np.float32)),
    PlainSerializer(lambda array: array.tolist()),
]
"""A float32 array that is a number or a list in JSON; every float32 survives the way there and back."""

Int32 = Annotated[
    NDArray[np.int32],
    PlainValidator(lambda values: np.asarray(values, np.int64).clip(-(2**31), 2**31 - 1).astype(np.int32)),
    PlainSerializer(lambda array: array.tolist()),
]


SMALLEST_SCALE = {"float32": float(np.finfo(np.float32).tiny), "float16": 2.0**-20}
"""By the type scales are stored in. float16 has no normal number below 2^-14, which would be too coarse a step for the
small weights of many channels: 2^-20 is subnormal and still has a relative precision of 3 %."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UniformQuantizer:
    """Scales and zero-points of one tensor.

    Attributes:
        bits: 2 to 8. Below 8 the codes use only the first 2^bits values of the 8-bit type.
        signed: codes are int8 if true, uint8 if not.
        scale: positive; float32, shape () for the whole tensor or (channels,).
        zero_point: the code that stands for 0; int32, shape of `scale`.
        axis: the channels' axis in the tensor; None for the whole tensor.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    signed: bool
    scale: Float32
    zero_point: Int32
    axis: int | None = None
    kind: Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        low, high = self.code_range
        if self.scale.shape != self.zero_point.shape or self.scale.ndim != (self.axis is not None):
            raise ValueError("scale and zero_point must be numbers without axis, or lists of one length with one")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("every scale must be a number above 0")
        if not ((self.zero_point >= low) & (self.zero_point <= high)).all():
            raise ValueError(f"zero_point must be a code, {low} to {high}")

    @classmethod
    def from_range(
        cls,
        minimum: NDArray[np.floating],
        maximum: NDArray[np.floating],
        *,
        bits: int,
        symmetric: bool,
        axis: int | None = None,
        scale_dtype: type[np.floating] = np.float32,
    ) -> UniformQuantizer:
        """The quantizer that covers [minimum, maximum].

        Args:
            minimum: shape () or (channels,).
            maximum: same shape.
            bits: 2 to 8.
            symmetric: int8 codes and zero-point 0, the range widened to [-m, m], m = max |x|; else uint8 codes and a
                zero-point (Eq. 1).
            axis: the channels' axis; None for one range.
            scale_dtype: the type the scale is stored in; it is rounded to it here, so that codes are made with the
                stored value.
        """
        low, high = np.minimum(minimum, 0).astype(np.float64), np.maximum(maximum, 0).astype(np.float64)
        levels = 2**bits - 1
        step = np.maximum(-low, high) / (levels // 2) if symmetric else (high - low) / levels
        # An all-zero or denormal channel would get scale 0, which no runtime accepts: a tiny one stands in.
        scale = np.maximum(step, SMALLEST_SCALE[np.dtype(scale_dtype).name]).astype(scale_dtype).astype(np.float32)
        zero_point = np.zeros_like(scale) if symmetric else np.clip(np.rint(-low / scale), 0, levels)
        return cls(bits, symmetric, scale, zero_point.astype(np.int32), axis)

    @classmethod
    def around_middle(cls, low: float, high: float, bits: int) -> tuple[UniformQuantizer, int]:
        """The symmetric quantizer of ``x - m`` for x in [low, high], and m in whole steps, which keep 0 exact."""
        half = np.array((high - low) / 2)
        quantizer = cls.from_range(-half, half, bits=bits, symmetric=True)
        return quantizer, round((low + high) / 2 / float(quantizer.scale))

    def describe(self) -> str:
        """Its parameters in a line."""
        low, high = float(self.scale.min()), float(self.scale.max())
        parts = (
            f"{self.code_dtype.__name__} {'asymmetric' if self.zero_point.any() else 'symmetric'}",
            "per tensor" if self.axis is None else f"{self.scale.size} channels",
            f"Δ {low:.3g}" if low == high else f"Δ {low:.3g} to {high:.3g}",
        )
        return ", ".join(parts)

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2**self.bits - 1)

    @property
    def code_dtype(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.signed else np.uint8

    def along_axis(self, parameter: NDArray[Any], x: Array) -> Array:
        """`parameter` (a scale or zero-point) in x's array type, shaped to broadcast against x."""
        xp = namespace(x)
        shape = [1] * x.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return xp.asarray(parameter.reshape(shape) if self.axis is not None else parameter, device=x.device)

    def scaled(self, x: Array) -> Array:
        """``x / Δ``: what is rounded."""
        return x / self.along_axis(self.scale, x)

    def quantize(self, x: Array) -> Array:
        """float32 values of any shape -> codes as float32 whole numbers, shape kept."""
        xp = namespace(x)
        low, high = self.code_range
        return xp.clip(xp.round(self.scaled(x)) + self.along_axis(self.zero_point.astype(np.float32), x), low, high)

    def dequantize(self, codes: Array) -> Array:
        """Codes (any real type) -> float32 values."""
        xp = namespace(codes)
        codes = xp.astype(codes, xp.float32)
        return (codes - self.along_axis(self.zero_point.astype(np.float32), codes)) * self.along_axis(self.scale, codes)

    def fake_quantize(self, x: Array) -> Array:
        """What the runtime computes with instead of `x`."""
        return self.dequantize(self.quantize(x))
