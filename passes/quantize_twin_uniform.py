"""Decide on twin uniform quantizers for what follows Softmax and GELU (PTQ4ViT, section 3.2).

Only what quantized layers read of it: the products of attention and the layer behind a GELU. The parameter that the
method leaves open, the split of a Softmax or the step of GELU's positive values, is the one with the least squared
error on the calibration data; PTQ4ViT looks at the layer's output instead. `quantize_activations` comes after this pass
and leaves alone what it has decided on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from onnxquant.calibration.histogram import Histogram
from onnxquant.quantizers.twin_uniform import TwinUniformQuantizer
from onnxquant.quantizers.uniform import SMALLEST_SCALE
from onnxquant.skewed import QuantizeSkewed, Source

SPLITS = 20
"""Exponents that are tried; as many as the authors' code does."""

RATIOS = np.linspace(0.01, 1.2, 100)
"""Largest values of GELU that are tried, as parts of the largest seen."""


class QuantizeTwinUniform(QuantizeSkewed):
    """Quantize what layers read of attention's Softmax and of GELU in two ranges.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in int8.
    """

    method: ClassVar[str] = "two ranges (PTQ4ViT 3.2)"

    def candidates(self, source: Source, seen: Histogram, dtype: str) -> Iterable[TwinUniformQuantizer]:
        smallest = SMALLEST_SCALE[dtype]
        if source == "Softmax":
            tried = [TwinUniformQuantizer.post_softmax(exponent, bits=self.bits) for exponent in range(SPLITS)]
        else:
            largest = max(seen.maximum, 2**self.bits * smallest)  # where nothing is above 0, any step will do
            tried = [TwinUniformQuantizer.post_gelu(largest * ratio, bits=self.bits) for ratio in RATIOS]
        return (each for each in tried if min(each.low_scale, each.high_scale) >= smallest)
