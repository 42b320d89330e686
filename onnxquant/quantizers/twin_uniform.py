"""Twin uniform quantization (PTQ4ViT, Yuan et al., 2022, section 3.2).

    T_b(x, Δ1, Δ2) = Ψ_{b-1}(x, Δ1) in R1, Ψ_{b-1}(x, Δ2) in R2        Ψ_b(x, Δ) = clip(round(x / Δ)) Δ, of 2^b codes

What follows Softmax and GELU is skewed: one step would be too coarse for the many small values or would clip the few
large ones. So there are two ranges with 2^(b-1) codes and a step each; one bit of the code says which.

    post-Softmax    R1 = [0, 2^-i)              Δ1 = 2^-i Δ2, chosen      Δ2 = 1 / (2^(b-1) - 1)
    post-GELU       R1 = [min GELU, 0)          Δ1 = -min GELU / 2^(b-1)  Δ2 chosen

As printed, Δ2 of Softmax is 1 / 2^(b-1), which has no code for 1; here, as in the authors' code, the largest code
stands for it.

In ONNX these are two symmetric int8 QuantizeLinear and DequantizeLinear pairs and a Where between them. It keeps the
accuracy of the method, not its speed: no runtime has integer kernels for two steps.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from onnxquant.quantizers.arrays import Array, namespace
from onnxquant.quantizers.uniform import UniformQuantizer

GELU_MINIMUM = -0.16997124254703522
"""Of x Φ(x), at x = -0.7518."""

Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TwinUniformQuantizer:
    """Two steps of one tensor, and where the one gives way to the other.

    Attributes:
        bits: 2 to 8, of both ranges together.
        split: values below it are in R1, the others in R2.
        low_scale: Δ1, float32.
        high_scale: Δ2, float32.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    split: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    low_scale: Scale
    high_scale: Scale
    kind: Literal["twin-uniform"] = "twin-uniform"

    @classmethod
    def post_softmax(cls, exponent: int, *, bits: int) -> TwinUniformQuantizer:
        """For values in [0, 1], with the fine steps below 2^-exponent."""
        coarse = 1 / (2 ** (bits - 1) - 1)
        return cls(bits, 2.0**-exponent, 2.0**-exponent * coarse, coarse)

    @classmethod
    def post_gelu(cls, largest: float, *, bits: int) -> TwinUniformQuantizer:
        """For what GELU computes, with the largest code standing for `largest`, above 0."""
        half = 2 ** (bits - 1)
        return cls(bits, 0.0, -GELU_MINIMUM / half, largest / (half - 1))

    def describe(self) -> str:
        """Its parameters in a line."""
        return f"int8, Δ {self.low_scale:.3g} below {self.split:.3g}, {self.high_scale:.3g} above"

    @property
    def low(self) -> UniformQuantizer:
        """That of R1: symmetric. Its codes have one sign only, 2^(b-1) of them."""
        return self._part(self.low_scale)

    @property
    def high(self) -> UniformQuantizer:
        """That of R2."""
        return self._part(self.high_scale)

    def _part(self, scale: float) -> UniformQuantizer:
        return UniformQuantizer(self.bits, True, np.array(scale), np.array(0))

    def fake_quantize(self, x: Array) -> Array:
        """What the runtime computes with instead of `x`: float32, shape kept."""
        xp = namespace(x)
        below = x < float(np.float32(self.split))
        return xp.where(below, self.low.fake_quantize(x), self.high.fake_quantize(x))
