"""Two models on the same data, output by output and layer by layer: where does a rewritten model's error come from?

The second may have run on another machine, where polygraphy saved its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import onnx
from numpy.typing import NDArray

from onnxquant.calibration.arrays import FeedDataset
from onnxquant.calibration.batching import Batch, batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.measure.metrics import Agreement
from onnxquant.measure.sessions import ModelSource, Runner, read_model
from onnxquant.polygraphy.results import SavedOutputs

FLOATS = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})

SAME_RUN = "give the inputs that polygraphy saved in the same run, or the data that it was given"


class Layer(NamedTuple):
    """A tensor that both models compute, the op that produces it in the first, and its SQNR in dB."""

    tensor: str
    op: str
    sqnr_db: float


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        outputs: how well the outputs agree, by name.
        layers: every tensor the two share, worst first.
    """

    outputs: dict[str, Agreement]
    layers: list[Layer]


def compare(
    a: ModelSource,
    b: ModelSource,
    dataset: Dataset,
    batch_size: int = 32,
    per_layer: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run reference `a` and rewritten `b` on `dataset`.

    The outputs come from the models as they are, fully optimised. Layers come from copies that output every float
    tensor which a node of both models produces under the same name, with the same shape; this keeps some fusions away,
    so a layer's value is near, not equal, to what the optimised model computes inside. Layers are run sample by sample:
    their activations take memory.

    Args:
        a: path or proto.
        b: path or proto, with the same inputs and outputs.
        dataset: for these inputs.
        batch_size: samples in one run, where the models' batch axis is dynamic.
        per_layer: compare layers too.
        progress: called with (runs done, runs in all), in samples.

    Raises:
        OnnxquantError: the models' inputs or outputs differ, or there are no samples.
    """
    (proto_a, name_a), (proto_b, name_b) = read_model(a), read_model(b)
    specs_a, specs_b = input_specs(proto_a), input_specs(proto_b)
    inputs = [{(spec.name, spec.dtype) for spec in specs} for specs in (specs_a, specs_b)]
    _require_same("inputs", name_a, name_b, *inputs)
    if not len(dataset):
        raise OnnxquantError(f"{dataset.name}: has no samples; give at least one")
    runners = Runner(a, name_a), Runner(b, name_b)
    outputs = [name for name, kind in runners[0].outputs.items() if kind.startswith("tensor(")]
    _require_same("outputs", name_a, name_b, *({(name, None) for name in runner.outputs} for runner in runners))

    total = len(dataset) * (2 if per_layer else 1)
    specs = [*specs_a, *specs_b]
    result = _agreements(runners, outputs, batches(dataset, batch_size, specs), _counted(progress, 0, total))
    _require_shapes(outputs, result, name_a, name_b)
    layers: list[Layer] = []
    ops = _shared_tensors(proto_a, proto_b) if per_layer else {}
    if ops:
        runners = Runner(_with_outputs(proto_a, ops), name_a), Runner(_with_outputs(proto_b, ops), name_b)
        floats = [tensor for tensor in ops if all(runner.outputs[tensor] in FLOATS for runner in runners)]
        report = _counted(progress, len(dataset), total)
        found = _agreements(runners, floats, batches(dataset, 1, specs), report) if floats else {}
        layers = _worst_first(found, ops)
    return Comparison(result, layers)


def compare_saved(
    a: ModelSource,
    saved: SavedOutputs,
    dataset: Dataset,
    per_layer: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run reference `a` on what another machine has run, and compare with the outputs that were saved there.

    Args:
        a: path or proto.
        saved: the outputs, with other tensors of `a` beside them where polygraphy was told to mark some; those are the
            layers.
        dataset: the run's inputs: one sample (filled up to a fixed batch axis) or one saved feed an iteration.
        per_layer: compare layers too.
        progress: as in `compare`.

    Raises:
        OnnxquantError: the outputs are not those of `a`, or not one for each of the inputs.
    """
    proto, name = read_model(a)
    specs, runner = input_specs(proto), Runner(a, name)
    outputs = [output for output, kind in runner.outputs.items() if kind.startswith("tensor(")]
    if lacking := [output for output in outputs if output not in saved.tensors]:
        raise OnnxquantError(f"{saved.name}: holds no output {lacking[0]}, which {name} has; compare like models")
    if isinstance(dataset, FeedDataset) and dataset.feeds == len(saved.iterations):
        dataset = dataset.unsplit()
    ops = {tensor: op for tensor, op in _ops(proto).items() if tensor in saved.floats - set(outputs)}
    ops = ops if per_layer else {}
    total = len(dataset) * (2 if ops else 1)

    def against_saved(runner: Runner, tensors: list[str], done: int) -> dict[str, Agreement]:
        replay = _Replay(saved)
        found = _agreements((runner, replay), tensors, batches(dataset, 1, specs), _counted(progress, done, total))
        replay.require_end(dataset)
        return found

    result = against_saved(runner, outputs, 0)
    _require_shapes(outputs, result, name, saved.name)
    layers: list[Layer] = []
    if ops:
        found = against_saved(Runner(_with_outputs(proto, ops), name), list(ops), len(dataset))
        layers = _worst_first(found, ops)
    return Comparison(result, layers)


class _Source(Protocol):
    def run(self, batch: Batch, outputs: Sequence[str]) -> list[NDArray[Any]]: ...


class _Replay:
    """Gives saved outputs as a `Runner` gives a model's: those of the next iteration for each batch."""

    def __init__(self, saved: SavedOutputs) -> None:
        self._saved, self._position = saved, 0

    def run(self, batch: Batch, outputs: Sequence[str]) -> list[NDArray[Any]]:
        if self._position == len(self._saved.iterations):
            raise OnnxquantError(f"{self._saved.name}: ends before {batch.names[0]}; {SAME_RUN}")
        iteration = self._saved.iterations[self._position]
        self._position += 1
        return [batch.without_padding(iteration[output]) for output in outputs]

    def require_end(self, dataset: Dataset) -> None:
        if self._position < (count := len(self._saved.iterations)):
            raise OnnxquantError(
                f"{self._saved.name}: holds {count} iterations, but {dataset.name} gives {self._position}; {SAME_RUN}"
            )


def _agreements(
    pair: tuple[_Source, _Source], tensors: list[str], data: Iterable[Batch], progress: Callable[[int], None]
) -> dict[str, Agreement]:
    """Those of every tensor that has one shape in both."""
    found = {tensor: Agreement() for tensor in tensors}
    for batch in data:
        for tensor, r, t in zip(tensors, *(source.run(batch, tensors) for source in pair), strict=True):
            if r.shape == t.shape and tensor in found:
                found[tensor].update(r, t)
            else:
                found.pop(tensor, None)
        progress(batch.valid)
    return found


def _counted(progress: Callable[[int, int], None] | None, done: int, total: int) -> Callable[[int], None]:
    """What adds samples to those `done`, and tells `progress`."""

    def add(samples: int) -> None:
        nonlocal done
        done += samples
        if progress:
            progress(done, total)

    return add


def _worst_first(found: dict[str, Agreement], ops: dict[str, str]) -> list[Layer]:
    layers = [Layer(name, ops[name], agreement.sqnr_db) for name, agreement in found.items()]
    return sorted(layers, key=lambda layer: layer.sqnr_db)


def _require_shapes(outputs: list[str], found: dict[str, Agreement], name_a: str, name_b: str) -> None:
    if differing := [output for output in outputs if output not in found]:
        raise OnnxquantError(f"{name_b}: output {differing[0]} has another shape than in {name_a}; compare like models")


def _require_same(what: str, name_a: str, name_b: str, a: set[tuple[str, Any]], b: set[tuple[str, Any]]) -> None:
    if a != b:
        differing = ", ".join(sorted({name for name, _ in a ^ b}))
        raise OnnxquantError(f"{name_b}: its {what} differ from those of {name_a} in {differing}; compare like models")


def _shared_tensors(a: onnx.ModelProto, b: onnx.ModelProto) -> dict[str, str]:
    """Names that nodes of both graphs produce, in the order of `a`, with the op that produces each in `a`."""
    ops_b = _ops(b)
    return {output: op for output, op in _ops(a).items() if output in ops_b}


def _ops(model: onnx.ModelProto) -> dict[str, str]:
    """The op that produces each tensor of the main graph, but for constants."""
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    return {output: node.op_type for node in nodes for output in node.output if output}  # "": optional, left out


def _with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of `model` that outputs `tensors` too; ONNX Runtime finds their types itself."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    copied.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in present
    )
    return copied
