"""Classification accuracy of what ONNX Runtime computes."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from onnxquant.calibration.batching import Batch, batches
from onnxquant.calibration.samples import Dataset, Subset, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.files import write_text
from onnxquant.measure.sessions import ModelSource, Runner, read_model


@dataclass(frozen=True)
class Accuracy:
    """Result of `evaluate`.

    Attributes:
        top1: share of the samples whose label has the largest logit, 0 to 1.
        top5: share of the samples whose label is among the five largest (of all, where there are fewer classes).
        samples: how many were evaluated.
        seconds: wall time, reading of the data included.
        agreement: share of the samples on which the reference prefers the same class; None without a reference.
    """

    top1: float
    top5: float
    samples: int
    seconds: float
    agreement: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of `top1`."""
        z2, n = 1.959963984540054**2, self.samples
        centre = (self.top1 + z2 / (2 * n)) / (1 + z2 / n)
        half = math.sqrt(z2 * (self.top1 * (1 - self.top1) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)


class _Counts(BaseModel):
    """What is known so far; as JSON, what an interrupted evaluation goes on from."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    done: int = 0
    top1: int = 0
    top5: int = 0
    agreed: int = 0
    seconds: float = 0.0


def evaluate(
    model: ModelSource,
    dataset: Dataset,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    reference: ModelSource | None = None,
    resume: Path | None = None,
) -> Accuracy:
    """Run the optimised model over `dataset` and count hits; the first output holds the logits, (batch, classes).

    Args:
        model: path or proto.
        dataset: with labels, for this model's inputs.
        batch_size: samples in one run, where the model's batch axis is dynamic.
        progress: called with (samples done, samples in all) after each run.
        threads: that ONNX Runtime may use; its own choice by default.
        reference: a model with the same inputs, to count how often the two agree.
        resume: file that the counts are kept in after every run, and taken from if it exists; removed at the end.

    Raises:
        OnnxquantError: no labels, labels beyond the classes, an output of another rank, or NaN or infinite logits; or
            `resume` belongs to another evaluation.
    """
    if dataset.labels is None:
        raise OnnxquantError(
            f"{dataset.name}: has no labels; put images into one folder for each class (named like the model's classes "
            "where it has some), or add an integer array called labels to the .npz"
        )
    if not len(dataset):
        raise OnnxquantError(f"{dataset.name}: has no samples; give at least one")
    sources = [model] if reference is None else [model, reference]
    protos = [read_model(source) for source in sources]
    runners = [Runner(source, name, threads) for source, (_, name) in zip(sources, protos, strict=True)]
    specs = [spec for proto, _ in protos for spec in input_specs(proto)]
    counts = _Counts(fingerprint=_fingerprint([proto for proto, _ in protos], dataset))
    if resume is not None and resume.exists():
        counts = _read(resume, counts.fingerprint)
    start = time.perf_counter() - counts.seconds
    remaining = Subset(dataset, range(counts.done, len(dataset)))
    for batch in batches(remaining, batch_size, specs):
        logits, *others = (_logits(runner, batch) for runner in runners)
        for sample, label, row in zip(batch.names, batch.labels, logits, strict=True):
            rank = _rank(row, label, sample, runners[0].name)
            counts.top1, counts.top5 = counts.top1 + (rank < 1), counts.top5 + (rank < 5)
        for other in others:
            counts.agreed += int(np.count_nonzero(logits.argmax(1) == other.argmax(1)))
        counts.done += batch.valid
        counts.seconds = time.perf_counter() - start
        if resume is not None:
            write_text(resume, counts.model_dump_json(), "--resume")
        if progress:
            progress(counts.done, len(dataset))
    if resume is not None:
        resume.unlink(missing_ok=True)
    agreement = None if reference is None else counts.agreed / counts.done
    return Accuracy(counts.top1 / counts.done, counts.top5 / counts.done, counts.done, counts.seconds, agreement)


def require_resolved(dataset: Dataset, drop: float) -> None:
    """Make sure that a drop of top-1 accuracy by `drop` shows on this data.

    Raises:
        OnnxquantError: one sample counts for more.
    """
    if drop > 0 and len(dataset) * drop < 1:
        raise OnnxquantError(
            f"{dataset.name}: {len(dataset)} samples beside those that calibrate can't tell a drop of {drop * 100:g}% "
            f"in top-1 accuracy; give at least {math.ceil(1 / drop)}"
        )


def _logits(runner: Runner, batch: Batch) -> NDArray[np.floating]:
    output = next(iter(runner.outputs))
    (logits,) = runner.run(batch, [output])
    if logits.ndim != 2 or len(logits) != len(batch.labels):
        raise OnnxquantError(
            f"{runner.name}: its first output {output} has shape {logits.shape} for {batch.valid} samples; "
            "accuracy needs logits of shape (samples, classes)"
        )
    for sample, row in zip(batch.names, logits, strict=True):
        if not np.isfinite(row).all():
            raise OnnxquantError(
                f"{runner.name}: output {output} holds NaN or infinite values on {sample}; the model is broken"
            )
    return logits


def _rank(row: NDArray[np.floating], label: int | None, sample: str, model: str) -> int:
    """How many classes the model prefers to the right one."""
    if label is None or not 0 <= label < len(row):
        raise OnnxquantError(
            f"{sample}: its label is {label}, but {model} has classes 0 to {len(row) - 1}; "
            "give labels, or folders, that number the model's own classes"
        )
    return np.argsort(-row.astype(np.float64), kind="stable").tolist().index(label)


def _fingerprint(protos: Sequence[onnx.ModelProto], dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for proto in protos:
        digest.update(proto.SerializeToString(deterministic=True))
    digest.update(repr((dataset.name, list(dataset.labels or ()))).encode())
    return digest.hexdigest()


def _read(resume: Path, fingerprint: str) -> _Counts:
    try:
        counts = _Counts.model_validate_json(resume.read_text("utf-8"))
    except (OSError, ValueError):
        raise OnnxquantError(f"--resume {resume}: not the state of an evaluation; give another file") from None
    if counts.fingerprint != fingerprint:
        raise OnnxquantError(f"--resume {resume}: is of another model or data; remove it, or give another file")
    return counts
