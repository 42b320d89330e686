"""Calibrate without rewriting: what a recipe's passes would observe of a model, as `Ranges`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxquant.calibration.collector import collect
from onnxquant.calibration.dataset import split_held
from onnxquant.calibration.observers import MinMax, Observer
from onnxquant.calibration.ranges import Ranges, fingerprint
from onnxquant.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECIPE, DEFAULT_SAMPLES, DEFAULT_TARGET
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import Source, load
from onnxquant.pass_manager import Observation, PassContext, PassManager
from onnxquant.passes.calibrate import Calibrate
from onnxquant.pipeline import CANONICAL_PASSES, open_samples
from onnxquant.recipes import build_passes, load_recipe
from onnxquant.targets import load_target

FLOATS = (np.float16, np.float32, np.float64)


def calibrate(
    model: Source,
    calibration: Any,
    *,
    recipe: str = DEFAULT_RECIPE,
    target: str = DEFAULT_TARGET,
    overrides: Sequence[str] = (),
    samples: int = DEFAULT_SAMPLES,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ranges:
    """Observe a model's tensors, on the samples that `onnxquant.rewrite` would calibrate on.

    The data is run twice: once for the recipe, exactly as a rewrite does it, and once for all activations, which keep
    ONNX Runtime from fusing nodes and so change the last bits of what it computes.

    Args:
        model: as in `onnxquant.rewrite`; the other arguments too.
        calibration: what to run. As much as a rewrite would hold back to judge its result on takes no part.
        recipe: name of the recipe, or path of its file, that the ranges are for.
        target: name of the runtime that the rewrite is for.
        overrides: options of passes, ``pass.option=value`` each.
        samples: the most samples to run.
        batch_size: the most to run at once.
        progress: called with (runs done, runs in all), in samples.

    Raises:
        OnnxquantError: bad input, of whichever kind, or NaN or infinite values in an activation.
    """
    source = load(model)
    dataset = open_samples(source, calibration)
    if dataset is None or samples < 1:
        raise OnnxquantError(f"{source.name}: calibration needs data, and at least 1 sample of it")
    data, _ = split_held(dataset, samples)
    runs = 2 * len(data)
    whole, activations = source.to_proto(), _activations(source.graph)
    context = PassContext(
        source,
        load_target(target),
        calibration=data,
        batch_size=batch_size,
        progress=lambda done, _: progress(done, runs),
    )
    steps = PassManager([*CANONICAL_PASSES, *build_passes(load_recipe(recipe), list(overrides))]).passes
    asked = [position for position, step in enumerate(steps) if isinstance(step, Calibrate)]
    observed: dict[Observation, Observer] = {}
    measured = ""
    for position, step in enumerate(steps[: max(asked, default=len(CANONICAL_PASSES) - 1) + 1]):
        if position == min(asked, default=None):
            measured = fingerprint(source.graph)
        context.upcoming = steps[position + 1 :]
        step.run(source.graph, context)
        observed |= context.observations
    everything: dict[Observation, MinMax] = {
        (tensor, MinMax): MinMax() for tensor in activations if (tensor, MinMax) not in observed
    }
    if everything:
        collect(
            whole, everything, data, batch_size=batch_size, progress=lambda done, _: progress(len(data) + done, runs)
        )
    tensors: dict[str, dict[str, Any]] = {tensor: {} for tensor in activations}
    for (tensor, kind), observer in (everything | observed).items():
        tensors.setdefault(tensor, {})[kind.__name__] = observer.state()
    return Ranges(
        model=Path(source.name).name,
        fingerprint=measured or fingerprint(source.graph),
        recipe=recipe,
        samples=len(data),
        tensors=tensors,
    )


def _activations(graph: gs.Graph) -> list[str]:
    """Names of the float tensors of the main graph that are computed or fed, in order."""
    tensors = [*graph.inputs, *(output for node in graph.nodes for output in node.outputs)]
    return [tensor.name for tensor in tensors if tensor.name and tensor.dtype in FLOATS]
