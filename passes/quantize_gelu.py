"""Decide on shift-log quantizers for what follows GELU (ADFQ-ViT, section 3.3).

GELU's values crowd between its minimum, -0.17, and 0, and a few are large. Shifted to be positive they have a long
tail, which a logarithmic scale follows: close levels where the crowd is, distant ones above.

With base 2 (the paper) or √2 (the authors' public code) the shift is that of the smallest value seen, and calibration
chooses how many levels lie above 0. More than 5 bits gain nothing then: further levels lie at the smallest value. With
a base of its own, a tensor gets the shift and the largest level of least squared error, and the base whose levels fill
the range. `onnxquant.quantizers.shift_log` has the errors of all three.

Only what quantized layers read of a GELU; `quantize_activations` comes after this pass and leaves alone what it has
decided on.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, log, log1p
from typing import ClassVar

import numpy as np

from onnxquant.calibration.histogram import Histogram
from onnxquant.quantizers.shift_log import BASES, BaseOption, ShiftLogQuantizer
from onnxquant.skewed import QuantizeSkewed, Source

RATIOS = np.linspace(0.2, 1.05, 18)
"""Largest levels that are tried, as parts of the largest value seen."""

SHIFTS = 1 + 2 ** np.arange(-2, 5.5, 0.5)
"""Shifts that are tried, as multiples of the magnitude of the smallest value seen: with the last one, the levels lie
nearly evenly."""


class QuantizeGelu(QuantizeSkewed):
    """Quantize what layers read of GELU on a shifted logarithmic scale that has a level at 0.

    Attributes:
        bits: 2 to 8; codes below 8 bits are stored in int8.
        base: of the scale: 2, sqrt2, or adaptive for that of least squared error on the calibration data.
    """

    base: BaseOption = "adaptive"

    sources: ClassVar[tuple[Source, ...]] = ("GELU",)
    method: ClassVar[str] = "shift-log (ADFQ-ViT 3.3)"

    def candidates(self, source: Source, seen: Histogram, dtype: str) -> Iterable[ShiftLogQuantizer]:
        high = max(seen.maximum, 1e-6)  # where nothing is above 0, or below it, any level will do
        low = min(seen.minimum, -1e-3 * high)
        if self.base == "adaptive":
            return (
                ShiftLogQuantizer.spread(low, high * ratio, -low * shift, bits=self.bits)
                for ratio in RATIOS
                for shift in SHIFTS
            )
        base = BASES[self.base]
        enough = min(ceil(log1p(high / -low) / log(base)), 2**self.bits - 1)
        return (ShiftLogQuantizer.post_gelu(-low, base, above, bits=self.bits) for above in range(enough + 1))
