"""Logarithmic quantization of what follows Softmax and GELU, with any base (ADFQ-ViT, sections 3.1 and 3.3).

    q = clip(round(-log_b((x + m) / s)), 0, 2^n - 1)        x̂ = s b^-q - m

b is the base: 2 (FQ-ViT, ADFQ-ViT), √2 (RepQ-ViT), or chosen for a tensor (AdaLog). m is the shift that makes every
value positive: 0 for a Softmax, and for GELU -min x + ε in ADFQ-ViT's Eq. 22. s is the largest x + m: ADFQ-ViT's Eq. 14
says max(X_Q), which can't be meant.

Two things differ from ADFQ-ViT. Its grid has no level at 0, where most of GELU's values are: with base 2 the nearest is
up to 0.07 away. Here 0 is a level of every grid for GELU, with s = m b^k, and comes back exactly. And with a base of
its own m is free too: the larger it is, the more evenly the levels lie. Relative error of N(0, 1.5) after GELU at 4
bits: base 2 .22, √2 .11, with a base and a shift of its own .063; in one step .097, in two ranges (PTQ4ViT) .12.

Where the last code stands for exactly 0, the sum of many small probabilities doesn't grow. RepQ-ViT has such a value
too, but in addition to its 2^n levels.

In ONNX this is a pair of functions in the domain ``onnxquant``, bodies of standard ops, with int8 codes ``q - 2^(n-1)``
between them: zero-point 0 and no uint8, so that TensorRT takes them too. The logarithm is the natural one (ONNX has no
other), so the step is stored as -ln b.
"""

from __future__ import annotations

from math import exp, log, log1p, sqrt
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from onnxquant.quantizers.arrays import Array, namespace

SMALLEST_BASE = 1 + 1e-5
"""The float32 rounding of a value (1e-7, relative) stays far below half a step, so that clipped values can't reach
codes outside their range."""

SMALLEST, LARGEST = 1e-30, 1e30
"""Of levels that mean something: far inside float32's range."""

Level = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]

BaseOption: TypeAlias = Annotated[Literal["2", "sqrt2", "adaptive"], BeforeValidator(str)]
"""What a pass may be told about the base; the number 2 counts as its text."""

BASES = {"2": 2.0, "sqrt2": sqrt(2)}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShiftLogQuantizer:
    """x̂ = u b^(k - q) - m: the grid by one of its levels, which comes back exactly.

    Attributes:
        bits: n, 2 to 8.
        base: b.
        unit: u, the value, shift added, that code k stands for.
        level: k: 0 where `unit` is the largest value; the code of 0 where `unit` is the shift.
        shift: m.
        zero_code: whether the last code stands for 0 instead; only without a shift.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    base: Annotated[float, Field(ge=SMALLEST_BASE, le=1e3)]
    unit: Level
    level: Annotated[int, Field(ge=0)] = 0
    shift: Annotated[float, Field(ge=0, le=LARGEST)] = 0.0
    zero_code: bool = False
    kind: Literal["shift-log"] = "shift-log"

    def __post_init__(self) -> None:
        if self.level >= 2**self.bits:
            raise ValueError(f"level must be one of the {2**self.bits} codes")
        if self.zero_code and self.shift:
            raise ValueError("zero_code is for a shift of 0")
        if log(self.unit) + self.level * log(self.base) > log(LARGEST):
            raise ValueError("level, base and unit make a largest value that float32 doesn't hold")

    @classmethod
    def post_softmax(cls, base: float, *, bits: int, largest: float = 1.0) -> ShiftLogQuantizer:
        """For probabilities up to `largest`; the last code stands for 0. With base 2 it is FQ-ViT's log-int-softmax."""
        return cls(bits, base, largest, zero_code=True)

    @classmethod
    def post_gelu(cls, shift: float, base: float, above: int, *, bits: int) -> ShiftLogQuantizer:
        """For values from `-shift` on, with 0 and `above` levels above it."""
        return cls(bits, base, shift, above, shift)

    @classmethod
    def spread(cls, low: float, high: float, shift: float, *, bits: int) -> ShiftLogQuantizer:
        """With 0 as a level, and the base that spreads the levels from `low` to `high`, to within half a step.

        Args:
            low: below 0.
            high: above 0.
            shift: above -low; the larger, the more evenly the levels lie.
            bits: see the class.
        """
        above, below = log1p(high / shift), -log1p(low / shift)
        step = (above + below) / (2**bits - 1)
        return cls.post_gelu(shift, exp(step), round(above / step), bits=bits)

    def describe(self) -> str:
        """Its parameters in a line."""
        around = f"around {-self.shift:.3g}" if self.shift else "0 below them"
        return f"base {self.base:.4g}, levels up to {self.largest:.3g}, {around}"

    @property
    def largest(self) -> float:
        """The value of the first code, float32."""
        return float(self.dequantize(np.array(self.code_range[0], np.float32)))

    @property
    def step(self) -> float:
        """-ln b, a float32 number."""
        return float(np.float32(-log(self.base)))

    @property
    def centre(self) -> int:
        """The code of `unit`."""
        return self.level - 2 ** (self.bits - 1)

    @property
    def clip_range(self) -> tuple[float, float]:
        """What (x + m) / u is clipped to, as float32 numbers: no code leaves its range, and no logarithm is infinite.

        With base 2 and 8 bits the last codes are never used: float32 holds no normal number below 2^-126.
        """
        lowest = -min((2**self.bits - 1 - self.level) * log(self.base), 126 * log(2))
        return float(np.float32(exp(lowest))), float(np.float32(exp(self.level * log(self.base))))

    @property
    def threshold(self) -> float:
        """Levels up to it are 0, a float32 number: between the last two where there is a zero code."""
        return float(np.float32(self.unit * self.clip_range[0] * sqrt(self.base))) if self.zero_code else 0.0

    @property
    def code_range(self) -> tuple[int, int]:
        half = 2 ** (self.bits - 1)
        return -half, half - 1

    def quantize(self, x: Array) -> Array:
        """float32 values -> codes in `code_range` as float32 whole numbers, shape kept.

        Step for step what the ONNX function does in float32.
        """
        xp = namespace(x)
        ratio = xp.clip((x + float(np.float32(self.shift))) / float(np.float32(self.unit)), *self.clip_range)
        return xp.round(xp.log(ratio) / self.step) + float(self.centre)

    def dequantize(self, codes: Array) -> Array:
        """Codes -> float32 values."""
        xp = namespace(codes)
        steps = (xp.astype(codes, xp.float32) - float(self.centre)) * self.step
        levels = xp.exp(steps) * float(np.float32(self.unit))
        kept = xp.where(levels > self.threshold, levels, xp.zeros_like(levels))
        return kept - float(np.float32(self.shift))

    def fake_quantize(self, x: Array) -> Array:
        """What the runtime computes with instead of `x`."""
        return self.dequantize(self.quantize(x))
