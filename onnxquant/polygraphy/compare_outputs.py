"""For ``polygraphy run --compare-func-script``: outputs match from a signal to quantization noise ratio upwards.

``python -m onnxquant.polygraphy compare_outputs`` prints this file's path. ONNXQUANT_MIN_SQNR is the threshold in dB,
by default that of ``onnxquant rewrite --min-sqnr``.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np
from polygraphy.logger import G_LOGGER

from onnxquant.defaults import DEFAULT_MIN_SQNR
from onnxquant.errors import OnnxquantError
from onnxquant.measure.metrics import Agreement
from onnxquant.polygraphy.errors import as_polygraphy_errors


def compare_outputs(first: Any, second: Any) -> OrderedDict[str, bool]:
    """Compare one iteration of two runners.

    polygraphy doesn't say which of them is the reference, so the weaker of the two signals counts.

    Args:
        first: polygraphy's IterationResult, arrays by output name.
        second: same.

    Returns:
        Whether each output of either matches; one with another shape, or that the other lacks, doesn't.
    """
    with as_polygraphy_errors():
        threshold = _threshold()
    matches = OrderedDict()
    for name in OrderedDict.fromkeys([*first, *second]):
        if name not in first or name not in second:
            lacking = second if name in first else first
            G_LOGGER.error(f"{name}: {lacking.runner_name} has no such output")
            matches[name] = False
            continue
        a, b = np.asarray(first[name]), np.asarray(second[name])
        if a.shape != b.shape:
            G_LOGGER.error(f"{name}: shapes differ, {a.shape} and {b.shape}")
            matches[name] = False
            continue
        agreement, reverse = Agreement(), Agreement()
        agreement.update(a, b)
        reverse.update(b, a)
        sqnr_db = min(agreement.sqnr_db, reverse.sqnr_db)
        matches[name] = sqnr_db >= threshold
        line = f"{name}: SQNR {sqnr_db:.1f} dB (at least {threshold:g} wanted), cosine {agreement.cosine:.5f}"
        if agreement.top1_agreement is not None:
            line += f", top-1 agreement {agreement.top1_agreement:.1%}"
        (G_LOGGER.info if matches[name] else G_LOGGER.error)(line)
    return matches


def _threshold() -> float:
    text = os.environ.get("ONNXQUANT_MIN_SQNR", str(DEFAULT_MIN_SQNR))
    try:
        threshold = float(text)
    except ValueError:
        threshold = float("nan")
    if np.isnan(threshold):
        raise OnnxquantError(f"ONNXQUANT_MIN_SQNR={text}: must be a number of dB")
    return threshold
