"""Look at a graph after every pass: --verify-each and --dump-dir."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxquant.calibration.dataset import Dataset, batches, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import Model, check
from onnxquant.measure.metrics import sqnr_db
from onnxquant.measure.sessions import Runner
from onnxquant.pass_manager import Pass

EXACT_SQNR = 60.0
"""dB. Passes that claim to keep the function may differ by float rounding, which stays far above this."""


class VerifyEach:
    """Check the graph after every pass and compare its outputs with those before it.

    Args:
        model: the model the passes work on.
        dataset: its first sample is run.
        report: called with one line a pass.
    """

    def __init__(self, model: Model, dataset: Dataset, report: Callable[[str], None]) -> None:
        self._model, self._report = model, report
        self._batch = next(batches(dataset, 1, input_specs(model.graph)))
        self._before = self._outputs("load")

    def __call__(self, position: int, step: Pass, graph: gs.Graph) -> None:
        after = self._outputs(step.pass_name())
        worst = min(sqnr_db(before, now) for before, now in zip(self._before, after, strict=True))
        self._report(f"verify {step.pass_name()}: checker passed, outputs within {worst:.1f} dB of those before it")
        if step.exact and not worst >= EXACT_SQNR:
            raise OnnxquantError(
                f"--verify-each: {step.pass_name()} changed the outputs ({worst:.1f} dB, at least {EXACT_SQNR:g} "
                "expected); this is a bug in the pass, please report it with the model"
            )
        self._before = after

    def _outputs(self, after: str) -> list[NDArray[np.generic]]:
        runner = Runner(check(self._model.to_proto(), f"graph after {after}"), f"graph after {after}")
        return runner.run(self._batch, list(runner.outputs))


class DumpEach:
    """Write the graph after every pass to ``folder/NN_pass.onnx``."""

    def __init__(self, model: Model, folder: Path) -> None:
        self._model, self._folder = model, folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OnnxquantError(f"--dump-dir {folder}: can't be made ({error.strerror})") from None

    def __call__(self, position: int, step: Pass, graph: gs.Graph) -> None:
        path = self._folder / f"{position:02d}_{step.pass_name()}.onnx"
        try:
            onnx.save(self._model.to_proto(), path)
        except OSError as error:
            raise OnnxquantError(f"--dump-dir {path}: can't be written ({error.strerror})") from None
