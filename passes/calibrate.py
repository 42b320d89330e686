"""Observe every tensor that the passes still to come ask about: run the calibration data once, or recall its ranges."""

from __future__ import annotations

import itertools
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxquant.calibration.collector import collect
from onnxquant.calibration.observers import Observer
from onnxquant.errors import OnnxquantError
from onnxquant.pass_manager import Observation, Pass, PassContext, PassResult


class Calibrate(Pass):
    """Observe activations on the calibration data, in one streaming run for all passes up to the next calibration.

    Ranges that were kept from an earlier calibration go before the data. Without either nothing is observed, and passes
    fall back on what is known without data.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"blocks"})
    provides: ClassVar[frozenset[str]] = frozenset({"observations"})

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        asking: dict[Observation, Pass] = {}
        for step in itertools.takewhile(lambda step: not isinstance(step, Calibrate), context.upcoming):
            for observation in step.observes(graph, context):
                asking.setdefault(observation, step)
        if context.ranges is None and context.calibration is None:
            return PassResult(
                False, ("no calibration data: ranges are the widest possible (give --calib for measured ones)",)
            )
        if not asking:
            return PassResult(False, ("no pass after this one asks for statistics",))
        found, said = _recall(asking, graph, context) if context.ranges else _observe(asking, context)
        context.observations.update(found)
        tensors = len({tensor for tensor, _ in found})
        return PassResult(False, (f"{tensors} tensors {said}",))


def _observe(asking: dict[Observation, Pass], context: PassContext) -> tuple[dict[Observation, Observer], str]:
    assert context.calibration is not None
    found = {(tensor, observer): observer() for tensor, observer in asking}
    collect(
        context.model.to_proto(),
        found,
        context.calibration,
        batch_size=context.batch_size,
        progress=context.progress,
    )
    return found, f"observed on {len(context.calibration)} samples"


def _recall(
    asking: dict[Observation, Pass], graph: gs.Graph, context: PassContext
) -> tuple[dict[Observation, Observer], str]:
    """What the ranges hold.

    Raises:
        OnnxquantError: they were measured on another model, or lack something that a pass asks for.
    """
    ranges = context.ranges
    assert ranges is not None
    if not any(isinstance(step, Calibrate) for step in context.earlier):  # passes between may have changed the graph
        ranges.require_measured_on(graph, context.model.name, [tensor for tensor, _ in asking])
    found = {}
    for (tensor, observer), step in asking.items():
        seen = ranges.observed(tensor, observer)
        if seen is None:
            raise OnnxquantError(
                f"ranges: lack {observer.__name__} of tensor {tensor}, which {step.pass_name()} needs; "
                "calibrate again with the --recipe and --set that you rewrite with"
            )
        found[tensor, observer] = seen
    return found, f"as measured on {ranges.samples} samples before"
