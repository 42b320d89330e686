"""Plans tried out: what the optimised runtime makes of a model with these quantizers, or with those."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

import onnx
from numpy.typing import NDArray

from onnxquant.calibration.batching import Batch, batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.measure.metrics import Agreement
from onnxquant.measure.sessions import Runner
from onnxquant.pass_manager import PassContext
from onnxquant.passes.insert_quantizers import InsertQuantizers
from onnxquant.passes.quantize_biases import QuantizeBiases
from onnxquant.plan import PlanEntry, QuantizationPlan


class Trials:
    """The reference's inputs and outputs lie batch by batch in a file: memory holds one batch, whatever their number.

    Args:
        context: with the graph that quantizers go into; it stays as it is.
        reference: what the outputs are compared with.
        data: to compare them on.
        batch_size: samples in one run, where the model's batch axis is dynamic.
        file: to keep the reference's inputs and outputs in; empty, binary, to be read and written.
    """

    def __init__(
        self, context: PassContext, reference: onnx.ModelProto, data: Dataset, batch_size: int, file: IO[bytes]
    ) -> None:
        self._context, self._file = context, file
        runner = Runner(reference, context.model.name)
        self._outputs = [output for output, kind in runner.outputs.items() if kind.startswith("tensor(")]
        self._count = 0
        for batch in batches(data, batch_size, input_specs(reference)):
            pickle.dump((batch, runner.run(batch, self._outputs)), file)
            self._count += 1

    def model(self, entries: Sequence[PlanEntry]) -> onnx.ModelProto:
        """The model with these entries of the plan inserted."""
        model = replace(self._context.model, graph=self._context.model.graph.copy())
        context = PassContext(model, self._context.target, QuantizationPlan(entries=list(entries)))
        for step in (InsertQuantizers(), QuantizeBiases()):
            step.run(model.graph, context)
        return model.to_proto()

    def agreement(self, entries: Sequence[PlanEntry]) -> dict[str, Agreement]:
        """How well the outputs of the model with these entries agree with the reference's, by name."""
        runner = Runner(self.model(entries), f"{self._context.model.name} with {entries[0].tensor} quantized")
        found = {output: Agreement() for output in self._outputs}
        for batch, expected in self._batches():
            for agreement, r, t in zip(found.values(), expected, runner.run(batch, self._outputs), strict=True):
                agreement.update(r, t)
        return found

    def _batches(self) -> Iterator[tuple[Batch, list[NDArray[Any]]]]:
        self._file.seek(0)
        return (pickle.load(self._file) for _ in range(self._count))


def noise(found: Mapping[str, Agreement]) -> float:
    """Noise energy as a part of the signal's, added up over the outputs."""
    return sum(10 ** (-agreement.sqnr_db / 10) for agreement in found.values())


def noise_share(part: float, whole: float) -> float:
    """What part of the noise `part` makes up; of infinite noise, or none, all or nothing."""
    if math.isinf(whole):
        return float(math.isinf(part))
    return part / whole if whole else 0.0
