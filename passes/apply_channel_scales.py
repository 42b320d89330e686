"""Apply the channel scales and shifts that a plan names, so that its graph becomes the one its quantizers are for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.errors import OnnxquantError
from onnxquant.graph.channel_scales import ChannelScales
from onnxquant.pass_manager import Pass, PassContext, PassResult


class ApplyChannelScales(Pass):
    """Apply the channel scales and shifts of a saved plan. Runs where a plan is given; no recipe lists it."""

    requires: ClassVar[frozenset[str]] = frozenset({"plan"})

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        plan, channel_scales = context.plan, ChannelScales(graph)
        for name, scales in plan.channel_scales.items():
            if not _apply(channel_scales, graph.tensors().get(name), scales, plan.channel_shifts.get(name)):
                what = f"{len(scales)} channel_scales" + (" and channel_shifts" if name in plan.channel_shifts else "")
                raise OnnxquantError(f"plan: tensor {name} can't have these {what}; is the plan for another model?")
        count = len(plan.channel_scales)
        return PassResult(count > 0, (f"{count} as the plan says" if count else "the plan has none",))


def _apply(
    channel_scales: ChannelScales, tensor: gs.Tensor | None, given: list[float], given_shifts: list[float] | None
) -> bool:
    """Apply them to one tensor if they fit, and say whether they did: plans may come from a user's hands."""
    place = None if tensor is None else channel_scales.place(tensor)
    scales, shifts = np.asarray(given, np.float32), np.asarray(given_shifts or [0.0] * len(given), np.float32)
    if place is None or not scales.shape == shifts.shape == (place.channels,):
        return False
    if not (np.isfinite(scales) & (scales > 0) & np.isfinite(shifts)).all() or (given_shifts and not place.shifts):
        return False
    return channel_scales.apply(place, scales, shifts if given_shifts else None)
