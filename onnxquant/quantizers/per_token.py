"""Uniform quantization with a scale a token, outliers kept in float (ADFQ-ViT, section 3.2; Eqs. 18-20, corrected).

    M_o = X where |X| >= α, else 0        M_no = X - M_o
    q = clip(round(M_no / s), -2^(b-1), 2^(b-1) - 1)        X̂ = q s + M_o        one s a token

What follows a LayerNorm has a few large values, which no token's scale has to reach when they stay as they are. As
printed, Eq. 18 compares X with α and leaves the negative outliers in. The paper's zero-points are left out: on the
normalised activations of a vision transformer they bring 0.1 dB at 4 bits and nothing at 6.

In ONNX the two parts are multiplied separately: a token's scale commutes with the matrix on the right, diag(s) q W, so
the codes are multiplied by the layer's weights on integers, and the outliers, nearly all 0, in float.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic.dataclasses import dataclass

from onnxquant.quantizers.arrays import Array, namespace
from onnxquant.quantizers.uniform import SMALLEST_SCALE


def _scales(values: Any) -> NDArray[np.float32] | None:
    return None if values is None else np.asarray(values, np.float32)


Scales = Annotated[
    NDArray[np.float32] | None,
    PlainValidator(_scales),
    PlainSerializer(lambda array: None if array is None else array.tolist()),
]
"""A float32 array that is a nested list in JSON, or None."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PerTokenQuantizer:
    """Scales of one (batch, tokens..., channels) tensor, and what counts as an outlier.

    Attributes:
        bits: 2 to 8. Below 8 the codes use only the middle 2^bits values of int8.
        scale: s, positive; float32, shape (tokens...); None where each token's is made of its largest magnitude when
            the model runs.
        threshold: α: what is as large or larger is an outlier; None where nothing is.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    scale: Scales = None
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kind: Literal["per-token"] = "per-token"

    def __post_init__(self) -> None:
        if self.scale is not None and not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("every scale must be a number above 0")

    def describe(self) -> str:
        """Its parameters in a line."""
        steps = "at run time" if self.scale is None else f"{self.scale.min():.3g} to {self.scale.max():.3g}"
        outliers = "" if self.threshold is None else f", float from {self.threshold:.3g}"
        return f"Δ by token, {steps}{outliers}"

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        half = 2 ** (self.bits - 1)
        return -half, half - 1

    def split(self, x: Array) -> tuple[Array, Array]:
        """Float32 (batch, tokens..., channels) -> what is quantized and the outliers, each with 0 for the other."""
        xp = namespace(x)
        zero = xp.zeros_like(x)
        if self.threshold is None:
            return x, zero
        large = xp.abs(x) >= float(np.float32(self.threshold))
        return xp.where(large, zero, x), xp.where(large, x, zero)

    def scales(self, inner: Array) -> Array:
        """What each token of `inner` (see `split`) is divided by, shaped to broadcast against it."""
        xp = namespace(inner)
        if self.scale is not None:
            return xp.asarray(self.scale[..., None], device=inner.device)
        largest = xp.max(xp.abs(inner), axis=-1, keepdims=True)
        return xp.clip(largest / self.code_range[1], SMALLEST_SCALE["float32"], None)

    def quantize(self, inner: Array, scales: Array) -> Array:
        """What `split` and `scales` give -> codes as float32 whole numbers, shape kept."""
        xp = namespace(inner)
        return xp.clip(xp.round(inner / scales), *self.code_range)

    def dequantize(self, codes: Array, scales: Array) -> Array:
        """Codes -> float32 values, without the outliers."""
        return codes * scales

    def fake_quantize(self, x: Array) -> Array:
        """What the runtime computes with instead of `x`, up to the rounding of the sums: float32, shape kept."""
        inner, outliers = self.split(x)
        scales = self.scales(inner)
        return self.dequantize(self.quantize(inner, scales), scales) + outliers
