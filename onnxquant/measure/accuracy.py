"""Classification accuracy of what ONNX Runtime computes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.measure.sessions import ModelSource, Runner, read_model


@dataclass(frozen=True)
class Accuracy:
    """Result of `evaluate`.

    Attributes:
        top1: share of the samples whose label has the largest logit, 0 to 1.
        top5: share of the samples whose label is among the five largest (of all, where there are fewer classes).
        samples: how many were evaluated.
        seconds: wall time, reading of the data included.
    """

    top1: float
    top5: float
    samples: int
    seconds: float

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of `top1`."""
        z2, n = 1.959963984540054**2, self.samples
        centre = (self.top1 + z2 / (2 * n)) / (1 + z2 / n)
        half = math.sqrt(z2 * (self.top1 * (1 - self.top1) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    model: ModelSource,
    dataset: Dataset,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Accuracy:
    """Run the optimised model over `dataset` and count hits; the first output holds the logits, (batch, classes).

    Args:
        model: path or proto.
        dataset: with labels, for this model's inputs.
        batch_size: samples in one run, where the model's batch axis is dynamic.
        progress: called with (samples done, samples in all) after each run.
        threads: that ONNX Runtime may use; its own choice by default.

    Raises:
        OnnxquantError: no labels, labels beyond the classes, an output of another rank, or NaN or infinite logits.
    """
    if dataset.labels is None:
        raise OnnxquantError(
            f"{dataset.name}: has no labels; put images into one folder for each class (named like the model's classes "
            "where it has some), or add an integer array called labels to the .npz"
        )
    if not len(dataset):
        raise OnnxquantError(f"{dataset.name}: has no samples; give at least one")
    proto, name = read_model(model)
    runner, specs = Runner(model, name, threads), input_specs(proto)
    output = next(iter(runner.outputs))
    start, done, first, five = time.perf_counter(), 0, 0, 0
    for batch in batches(dataset, batch_size, specs):
        (logits,) = runner.run(batch, [output])
        if logits.ndim != 2 or len(logits) != len(batch.labels):
            raise OnnxquantError(
                f"{name}: its first output {output} has shape {logits.shape} for {batch.valid} samples; "
                "accuracy needs logits of shape (samples, classes)"
            )
        for sample, label, row in zip(batch.names, batch.labels, logits, strict=True):
            if not np.isfinite(row).all():
                raise OnnxquantError(
                    f"{name}: output {output} holds NaN or infinite values on {sample}; the model is broken"
                )
            if label is None or not 0 <= label < len(row):
                raise OnnxquantError(
                    f"{sample}: its label is {label}, but output {output} of {name} has classes 0 to {len(row) - 1}; "
                    "give labels, or folders, that number the model's own classes"
                )
            rank = np.argsort(-row.astype(np.float64), kind="stable").tolist().index(label)
            first, five = first + (rank < 1), five + (rank < 5)
        done += batch.valid
        if progress:
            progress(done, len(dataset))
    return Accuracy(first / done, five / done, done, time.perf_counter() - start)
