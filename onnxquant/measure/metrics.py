"""How far a result is from a reference. Sums are float64: adding up millions of values costs no accuracy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Agreement:
    """The metrics over any number of batches; only sums are kept.

    A place where both hold the same infinity (an attention mask) counts as equal; any other value that is not finite
    counts as infinite noise.

    Attributes:
        samples: rows on axis 0 so far.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._signal = self._test = self._product = self._noise = 0.0
        self._rows = self._same = 0

    def update(self, reference: ArrayLike, test: ArrayLike) -> None:
        """Add a batch: two arrays of numbers with one shape.

        Raises:
            ValueError: the shapes differ.
        """
        r, t = np.asarray(reference), np.asarray(test)
        if r.shape != t.shape:
            raise ValueError(f"shapes differ: {r.shape} and {t.shape}")
        self.samples += r.shape[0] if r.ndim else 1
        if r.ndim == 2 and r.size:
            self._rows += len(r)
            self._same += int(np.count_nonzero(r.argmax(1) == t.argmax(1)))
        self._add(r.ravel().astype(np.float64), t.ravel().astype(np.float64))

    def _add(self, r: NDArray[np.float64], t: NDArray[np.float64]) -> None:
        finite = np.isfinite(r) & np.isfinite(t)
        if not finite.all():
            if (r[~finite] != t[~finite]).any():
                self._noise = math.inf
            r, t = r[finite], t[finite]
        self._signal += _dot(r, r)
        self._test += _dot(t, t)
        self._product += _dot(r, t)
        r -= t  # a copy of its own by now
        self._noise += _dot(r, r)

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise): infinite without noise, minus infinity for noise on a zero signal."""
        if self._noise == 0:
            return math.inf
        if self._signal == 0 or math.isinf(self._noise):
            return -math.inf
        return 10 * math.log10(self._signal / self._noise)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two, -1 to 1; 1 for two zeros, 0 for one."""
        if self._signal == 0 or self._test == 0:
            return float(self._signal == self._test)
        return self._product / math.sqrt(self._signal) / math.sqrt(self._test)

    @property
    def top1_agreement(self) -> float | None:
        """Share of the rows with their maximum in the same place; None unless the arrays were (batch, classes)."""
        return self._same / self._rows if self._rows else None

    def as_dict(self) -> dict[str, float | None]:
        """The three metrics, for JSON."""
        return {"sqnr_db": self.sqnr_db, "cosine": self.cosine, "top1_agreement": self.top1_agreement}


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Without BLAS, whose threads fight with ONNX Runtime's for so small a job: ten times slower beside a session."""
    return float(np.einsum("i,i->", a, b))


def sqnr_db(reference: ArrayLike, test: ArrayLike) -> float:
    """Signal to quantization noise ratio in dB, see `Agreement.sqnr_db`."""
    return _agreement(reference, test).sqnr_db


def cosine(reference: ArrayLike, test: ArrayLike) -> float:
    """Cosine similarity, see `Agreement.cosine`."""
    return _agreement(reference, test).cosine


def top1_agreement(reference: ArrayLike, test: ArrayLike) -> float | None:
    """Share of rows of two (batch, classes) arrays with the same winner, see `Agreement.top1_agreement`."""
    return _agreement(reference, test).top1_agreement


def _agreement(reference: Any, test: Any) -> Agreement:
    agreement = Agreement()
    agreement.update(reference, test)
    return agreement
