"""Whether a rewritten model is quicker than the original on this machine: a glance, where `bench` looks closely."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import onnx

from onnxquant.calibration.batching import Batch, batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.measure.sessions import Runner

SECONDS = 0.25
"""What the timed rounds take in all, unless that is fewer than `LEAST_ROUNDS`."""

LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """What one run of one sample takes in ONNX Runtime, on one thread of this machine.

    Attributes:
        original: seconds, the median.
        rewritten: the same.
        ratio: of the rewritten model's time to the original's: the median over the rounds.
    """

    original: float
    rewritten: float
    ratio: float


def compare_latency(original: onnx.ModelProto, rewritten: onnx.ModelProto, data: Dataset, name: str) -> Latency:
    """Run the two models in turns on the first sample of `data`.

    One thread each: threads of two sessions in one process would slow each other down.
    """
    batch = next(batches(data, 1, input_specs(original)))
    runners = [Runner(model, name, threads=1) for model in (original, rewritten)]
    rounds: list[tuple[float, ...]] = []
    spent = 0.0
    while len(rounds) < LEAST_ROUNDS or spent < SECONDS:
        rounds.append(tuple(_seconds(runner, batch) for runner in runners))
        spent += sum(rounds[-1])
    before, after = map(statistics.median, zip(*rounds, strict=True))
    return Latency(before, after, statistics.median(b / a for a, b in rounds))


def _seconds(runner: Runner, batch: Batch) -> float:
    """Of a second run: after the other model's turn the caches are cold."""
    outputs = list(runner.outputs)
    runner.run(batch, outputs)
    start = time.perf_counter()
    runner.run(batch, outputs)
    return time.perf_counter() - start
