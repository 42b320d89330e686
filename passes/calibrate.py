"""Run the calibration data once and observe every tensor that the passes still to come ask about."""

from __future__ import annotations

from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxquant.calibration.collector import collect
from onnxquant.pass_manager import Pass, PassContext, PassResult


class Calibrate(Pass):
    """Observe activations on the calibration data, in one streaming run for all passes after this one.

    Without calibration data nothing is observed, and passes fall back on what is known without data.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"blocks"})
    provides: ClassVar[frozenset[str]] = frozenset({"observations"})

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        wanted = {
            (tensor, observer): observer()
            for step in context.upcoming
            for tensor, observer in step.observes(graph, context)
        }
        if context.calibration is None:
            return PassResult(
                False, ("no calibration data: ranges are the widest possible (give --calib for measured ones)",)
            )
        if not wanted:
            return PassResult(False, ("no pass after this one asks for statistics",))
        collect(
            context.model.to_proto(),
            wanted,
            context.calibration,
            batch_size=context.batch_size,
            progress=context.progress,
        )
        context.observations.update(wanted)
        tensors = len({tensor for tensor, _ in wanted})
        return PassResult(False, (f"{tensors} tensors observed on {len(context.calibration)} samples",))
