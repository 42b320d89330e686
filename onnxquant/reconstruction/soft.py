"""Quantizers that gradients go through: rounding to be learned, and scales.

    W̃ = Δ (clip(floor(W / Δ) + Z + h(V), ...) - Z)        h(V) = clip(σ(V) (ζ - γ) + γ, 0, 1)        ζ = 1.1, γ = -0.1

V is learned, and h drawn to 0 or 1 in the end (AdaRound, Nagel et al., 2020, Eqs. 22 to 24). An activation's scale is
learned with the rounding passed straight through (LSQ, Esser et al., 2020); where its zero lies stays as it was, in
steps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from onnxquant.plan import PlanEntry
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.search.simulate import transform

STRETCH = (-0.1, 1.1)
"""γ and ζ: h gets to 0 and 1 within reach of V."""


class SoftRounding:
    """How the values of one weight round.

    Attributes:
        logits: V, float32 in the weight's shape.

    Args:
        values: of the weight.
        quantizer: that it has.
    """

    def __init__(self, values: Tensor, quantizer: UniformQuantizer) -> None:
        self._quantizer, self._dtype, weight = quantizer, values.dtype, values.float()
        scaled = quantizer.scaled(weight)
        self._floor = scaled.floor() + quantizer.along_axis(quantizer.zero_point.astype(np.float32), weight)
        low, high = STRETCH
        # A weight on a code is as far from either neighbour: V must stay finite.
        part = ((scaled - scaled.floor() - low) / (high - low)).clamp(1e-4, 1 - 1e-4)
        self.logits = torch.logit(part).requires_grad_()

    def weight(self) -> Tensor:
        """W̃, differentiable."""
        return self._dequantized(self._floor + self._up())

    def hardened(self) -> Tensor:
        """W̃ with every h rounded."""
        return self._dequantized(self._floor + self.up().float())

    def up(self) -> Tensor:
        """Which values round up: bool, in the weight's shape."""
        return self.logits.detach() >= 0

    def undecided(self, beta: float) -> Tensor:
        """Σ 1 - |2 h - 1|^β."""
        return (1 - (2 * self._up() - 1).abs().pow(beta)).sum()

    def _up(self) -> Tensor:
        low, high = STRETCH
        return (torch.sigmoid(self.logits) * (high - low) + low).clamp(0, 1)

    def _dequantized(self, codes: Tensor) -> Tensor:
        values: Tensor = self._quantizer.dequantize(codes.clamp(*self._quantizer.code_range))
        return values.to(self._dtype)


class Transform:
    """What a layer reads of an activation, with gradients passed through the rounding."""

    def __init__(self, entry: PlanEntry) -> None:
        self.entry = entry

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = transform(self.entry)(x)
        return x + (rounded - x).detach()

    def learned(self) -> PlanEntry:
        """The entry, with what was learned."""
        return self.entry


class LearnedScale(Transform):
    """The same for a uniform quantizer, or one a token, whose scale is learned.

    Attributes:
        factor: of the scale, float32 in its shape; 1 at first.
    """

    def __init__(self, entry: PlanEntry, device: torch.device) -> None:
        super().__init__(entry)
        quantizer = entry.quantizer
        assert isinstance(quantizer, UniformQuantizer | PerTokenQuantizer)
        assert quantizer.scale is not None
        self._quantizer, self._exact = quantizer, quantizer.scale
        self._scale = torch.from_numpy(quantizer.scale.copy()).to(device)
        self.factor = torch.ones_like(self._scale).requires_grad_()
        self._low, self._high = quantizer.code_range
        # A shift is a number of whole steps: a zero-point that may lie outside of the codes.
        shift = np.rint((entry.shift or 0.0) / quantizer.scale)
        zero_point = quantizer.zero_point if isinstance(quantizer, UniformQuantizer) else 0
        self._zero = torch.from_numpy(np.asarray(zero_point - shift, np.float32)).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self._quantizer, PerTokenQuantizer):
            inner, outliers = self._quantizer.split(x)
            found: Tensor = self._fake_quantize(inner, (self._scale * self.factor)[..., None], 0) + outliers
            return found
        return self._fake_quantize(x, self._scale * self.factor, self._zero)

    def _fake_quantize(self, x: Tensor, scale: Tensor, zero: Tensor | int) -> Tensor:
        steps = x / scale
        rounded = steps + (steps.round() - steps).detach()
        return ((rounded + zero).clamp(self._low, self._high) - zero) * scale

    def learned(self) -> PlanEntry:
        factor = self.factor.detach().cpu().numpy()
        quantizer = replace(self._quantizer, scale=self._exact * factor)
        shift = self.entry.shift
        return self.entry.model_copy(
            update={"quantizer": quantizer, "shift": None if shift is None else shift * float(factor)}
        )


def transform_of(entry: PlanEntry, device: torch.device, *, learn: bool) -> Transform:
    """What stands for an activation's quantizer while a part of the graph is learned.

    Args:
        entry: of the activation.
        device: to compute on.
        learn: its scale, where it has one.
    """
    quantizer = entry.quantizer
    scaled = isinstance(quantizer, UniformQuantizer | PerTokenQuantizer) and quantizer.scale is not None
    return LearnedScale(entry, device) if learn and scaled else Transform(entry)
