"""Two models on the same data, output by output and layer by layer: where does a rewritten model's error come from?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.measure.metrics import Agreement
from onnxquant.measure.sessions import ModelSource, Runner, read_model

FLOATS = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})


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

    def agreements(pair: tuple[Runner, Runner], tensors: list[str], size: int, done: int) -> dict[str, Agreement]:
        """Those of every tensor that has one shape in both models."""
        found = {tensor: Agreement() for tensor in tensors}
        for batch in batches(dataset, size, [*specs_a, *specs_b]):
            for tensor, r, t in zip(tensors, *(runner.run(batch, tensors) for runner in pair), strict=True):
                if r.shape == t.shape and tensor in found:
                    found[tensor].update(r, t)
                else:
                    found.pop(tensor, None)
            done += batch.valid
            if progress:
                progress(done, total)
        return found

    result = agreements(runners, outputs, batch_size, 0)
    if differing := [output for output in outputs if output not in result]:
        raise OnnxquantError(f"{name_b}: output {differing[0]} has another shape than in {name_a}; compare like models")
    layers: list[Layer] = []
    ops = _shared_tensors(proto_a, proto_b) if per_layer else {}
    if ops:
        runners = Runner(_with_outputs(proto_a, ops), name_a), Runner(_with_outputs(proto_b, ops), name_b)
        floats = [tensor for tensor in ops if all(runner.outputs[tensor] in FLOATS for runner in runners)]
        found = agreements(runners, floats, 1, len(dataset)) if floats else {}
        layers = sorted(
            (Layer(name, ops[name], found[name].sqnr_db) for name in found), key=lambda layer: layer.sqnr_db
        )
    return Comparison(result, layers)


def _require_same(what: str, name_a: str, name_b: str, a: set[tuple[str, Any]], b: set[tuple[str, Any]]) -> None:
    if a != b:
        differing = ", ".join(sorted({name for name, _ in a ^ b}))
        raise OnnxquantError(f"{name_b}: its {what} differ from those of {name_a} in {differing}; compare like models")


def _shared_tensors(a: onnx.ModelProto, b: onnx.ModelProto) -> dict[str, str]:
    """Names that nodes of both graphs produce, in the order of `a`, with the op that produces each in `a`."""
    ops_a, ops_b = (
        {output: node.op_type for node in model.graph.node if node.op_type != "Constant" for output in node.output}
        for model in (a, b)
    )
    ops_a.pop("", None)  # an optional output that is left out
    return {output: op for output, op in ops_a.items() if output in ops_b}


def _with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of `model` that outputs `tensors` too; ONNX Runtime finds their types itself."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    copied.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in tensors if name not in present
    )
    return copied
