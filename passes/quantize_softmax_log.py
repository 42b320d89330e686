"""Decide on logarithmic quantizers for post-Softmax activations, with base 2, √2 or one of the tensor's own.

    2           FQ-ViT's log-int-softmax: levels 1, 1/2, 1/4, ... (ADFQ-ViT's Eqs. 13 to 15 too)
    √2          RepQ-ViT, and ADFQ-ViT's public code: twice as fine, half as deep
    adaptive    AdaLog: as fine as the bits allow for the values that count

Except for FQ-ViT's, the largest level and the base are those of least squared error on the calibration data. AdaLog
chooses the base by the layer's output, among those whose powers fit its lookup tables; here it is any number. The last
code stands for 0: probabilities below the smallest level are many, and as levels they would add up.

Only what quantized layers read of a Softmax of attention: the products with V. `quantize_activations` comes after this
pass and leaves alone what it has decided on. (`quantize_softmax_log2` is EfficientQuant's quantizer, which puts its
codes on the range of the logarithms seen.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from onnxquant.calibration.histogram import Histogram
from onnxquant.quantizers.shift_log import BASES, BaseOption, ShiftLogQuantizer
from onnxquant.skewed import QuantizeSkewed, Source

RATIOS = (0.7, 0.85, 1.0)
"""Largest levels that are tried, as parts of the largest probability seen; 1 itself is another."""

OCTAVES = np.arange(1, 20.5, 0.5)
"""From the largest level to the smallest, that are tried."""


class QuantizeSoftmaxLog(QuantizeSkewed):
    """Quantize what the products of attention read of a Softmax on a logarithmic scale with a code for 0.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in int8.
        base: of the scale: 2, sqrt2, or adaptive for that of least squared error on the calibration data. The first two
            gain nothing from more than 5 bits.
    """

    base: BaseOption = "adaptive"

    sources: ClassVar[tuple[Source, ...]] = ("Softmax",)
    method: ClassVar[str] = "logarithmic, with a code for 0"

    def candidates(self, source: Source, seen: Histogram, dtype: str) -> Iterable[ShiftLogQuantizer]:
        adaptive = 2 ** (OCTAVES / (2**self.bits - 1))
        bases = adaptive.tolist() if self.base == "adaptive" else [BASES[self.base]]
        largest = [1.0] if self.base == "2" else [1.0, *(seen.maximum * ratio for ratio in RATIOS)]
        return (
            ShiftLogQuantizer.post_softmax(base, bits=self.bits, largest=each) for each in largest for base in bases
        )
