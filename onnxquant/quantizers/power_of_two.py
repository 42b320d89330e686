"""Uniform quantization with a power-of-two factor a channel (FQ-ViT, Lin et al., 2022, section 3.2).

    s = (max - min) / (2^b - 1) / 2^K        Z = round(-min / (2^K s))
    q_c = clip(round(x_c / (2^α_c s)) + Z, 0, 2^b - 1)        x̂_c = 2^α_c (q_c - Z) s        α_c in {0, ..., K}

What a LayerNorm reads differs by orders of magnitude from channel to channel: one scale leaves the small channels a few
codes, and a scale each can't be taken out of the sums that the norm makes over the channels. Factors that are powers of
two can, by shifting the codes: one scale and one zero-point serve the tensor.

In ONNX these are two multiplications around a pair with one scale: what a power of two does to a float is exact.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from onnxquant.quantizers.arrays import Array, namespace
from onnxquant.quantizers.uniform import UniformQuantizer

POINTS = 256
"""Values that stand for those of a channel."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PowerOfTwoFactorQuantizer:
    """The scale and zero-point of a tensor, and factors of its last axis.

    Attributes:
        bits: 2 to 8. Below 8 the codes use only the first 2^bits values of the 8-bit type.
        signed: codes are int8 if true, uint8 if not.
        scale: s, positive; float32.
        zero_point: Z, the code that stands for 0.
        exponents: α, one a channel, (C,).
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    signed: bool
    scale: float
    zero_point: int
    exponents: Annotated[tuple[Annotated[int, Field(ge=0, le=15)], ...], Field(min_length=1)]
    kind: Literal["power-of-two-factor"] = "power-of-two-factor"

    def __post_init__(self) -> None:
        self.uniform  # noqa: B018  # refuses what can't be a scale or a zero-point

    @classmethod
    def from_ranges(
        cls,
        minimum: NDArray[np.floating],
        maximum: NDArray[np.floating],
        *,
        bits: int,
        symmetric: bool,
        factors: int,
        scale_dtype: type[np.floating] = np.float32,
    ) -> PowerOfTwoFactorQuantizer:
        """The quantizer that covers all channels with its largest factor, and gives each the one of least error.

        The error is the squared one of values spread evenly over the channel's range. The authors' code takes the
        values of the last batch instead.

        Args:
            minimum: of each channel, (C,).
            maximum: same shape.
            bits: 2 to 8.
            symmetric: int8 codes and zero-point 0; else uint8 codes and a zero-point.
            factors: how many there are to choose from: 1, 2, 4, ...
            scale_dtype: the type the scale is stored in.
        """
        smallest = 2.0 ** (1 - factors)
        uniform = UniformQuantizer.from_range(
            np.asarray(minimum.min() * smallest, np.float64),
            np.asarray(maximum.max() * smallest, np.float64),
            bits=bits,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
        )
        values = np.linspace(minimum, maximum, POINTS, dtype=np.float32)
        errors = []
        for factor in np.ldexp(np.float32(1), np.arange(factors)):
            quantized = uniform.fake_quantize(values / factor).astype(np.float64) * factor
            errors.append(np.square(quantized - values).sum(axis=0))
        exponents = np.argmin(errors, axis=0)
        return cls(bits, uniform.signed, float(uniform.scale), int(uniform.zero_point), tuple(exponents.tolist()))

    def describe(self) -> str:
        """Its parameters in a line."""
        return (
            f"{self.uniform.describe()}, {len(self.exponents)} channels with factors up to {2 ** max(self.exponents)}"
        )

    @property
    def uniform(self) -> UniformQuantizer:
        """That of the values divided by their factors."""
        return UniformQuantizer(self.bits, self.signed, np.array(self.scale), np.array(self.zero_point))

    @property
    def factors(self) -> NDArray[np.float32]:
        """2^α, (C,)."""
        return np.ldexp(np.float32(1), np.array(self.exponents))

    def fake_quantize(self, x: Array) -> Array:
        """What the runtime computes with instead of `x`: float32 (..., C)."""
        xp = namespace(x)
        factors, inverse = (xp.asarray(values, device=x.device) for values in (self.factors, 1 / self.factors))
        return self.uniform.fake_quantize(x * inverse) * factors
