"""One streaming run over the calibration data: activations stay inside ONNX Runtime, only their statistics come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxquant.calibration.batching import Batch, batches
from onnxquant.calibration.observers import Observer
from onnxquant.calibration.reductions import batch_inputs, with_reductions
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.measure.sessions import Runner

ACTIVATION_BUDGET = 16 * 1024**2
"""Bytes that the largest activations of one batch may take (see `fitting_batch_size`)."""


def collect(
    model: onnx.ModelProto,
    observers: Mapping[tuple[str, type[Observer]], Observer],
    dataset: Dataset,
    *,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run `model` over `dataset` and update the observers.

    Args:
        model: not changed.
        observers: by the name of the tensor each one watches, and its own type.
        dataset: the samples.
        batch_size: the most samples to run at once; fewer where the activations of that many would not fit in
            `ACTIVATION_BUDGET`.
        progress: called with (samples done, samples in all) after each batch.

    Raises:
        OnnxquantError: a tensor has NaN or infinite values; the message names it and the sample.
    """
    specs = input_specs(model)
    batch_size = min(batch_size, fitting_batch_size(model, dataset[0].feeds))
    reducing, outputs = with_reductions(model, observers)
    runner = Runner(reducing, model.graph.name or "model", arena=False)
    del reducing  # as large as the model
    done = 0
    for batch in batches(dataset, batch_size, specs):
        values = dict(zip(runner.outputs, _run(runner, batch, list(runner.outputs)), strict=True))
        for observation, observer in observers.items():
            reduced = [values[name] for name in outputs[observation]]
            if not all(np.isfinite(value).all() for value in reduced):
                tensor, sample = observation[0], _culprit(runner, outputs[observation], batch)
                raise OnnxquantError(
                    f"calibration: tensor {tensor} has NaN or infinite values on sample {sample}; "
                    "take the sample out, or look whether the original model overflows on it"
                )
            observer.update(*reduced)
        done += batch.valid
        progress(done, len(dataset))


def fitting_batch_size(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> int:
    """How many samples keep three activations of the largest size within the budget: an input, an output and a
    temporary.

    Args:
        model: for its graph and inferred shapes.
        feeds: one sample.
    """
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    for value in shaped.graph.input:
        if value.name in feeds:
            value.type.tensor_type.shape.CopyFrom(
                helper.make_tensor_type_proto(1, feeds[value.name].shape).tensor_type.shape
            )
    del shaped.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(shaped, data_prop=True)
    sizes = [
        np.prod([dim.dim_value for dim in value.type.tensor_type.shape.dim], dtype=np.int64) * 4
        for value in inferred.graph.value_info
    ]
    return max(1, int(ACTIVATION_BUDGET // (3 * max(sizes, default=1) or 1)))


def _run(runner: Runner, batch: Batch, outputs: list[str]) -> list[NDArray[Any]]:
    samples = batch.valid + batch.padded
    return runner.run(replace(batch, feeds={**batch.feeds, **batch_inputs(samples)}), outputs)


def _culprit(runner: Runner, outputs: list[str], batch: Batch) -> str:
    """The name of the batch's first sample that makes `outputs` non-finite on its own."""
    for position, name in enumerate(batch.names):
        # The others are replaced by this one rather than left out: the batch axis may be fixed.
        alone = {
            key: np.repeat(value[position : position + 1], len(value), axis=0) if value.ndim else value
            for key, value in batch.feeds.items()
        }
        if not all(np.isfinite(value).all() for value in _run(runner, replace(batch, feeds=alone), outputs)):
            return name
    return f"one of {batch.names[0]} to {batch.names[-1]}"
