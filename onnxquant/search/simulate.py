"""What a plan makes of a model, in torch: a float graph that reads the values which the codes stand for.

It differs from the rewritten file by the rounding of float sums only, so it can stand for the file where gradients or
many trials are wanted. (Where a plan leaves a layer's activation in float and its weight not, ONNX Runtime may round
that activation to 8 bits.) Weights, and biases where the target has them as int32, are fed as the codes' values. An
activation goes through an Identity node on its way to the consumers that the plan names, and what that node computes is
quantized; all others read the float value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from onnxquant.errors import OnnxquantError
from onnxquant.graph.edit import UniqueNames, replace_uses
from onnxquant.graph.model import Model, Source, load
from onnxquant.graph.weight_codes import weight_values
from onnxquant.pipeline import apply_edits, canonicalise
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.quantizers.bias import bias_codes
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.targets import Target, load_target
from onnxquant.torch_graph import TorchGraph


@dataclass(frozen=True)
class Simulation:
    """A graph, and what is to be run in it.

    Whoever learns weights or quantizers runs `graph` with feeds and transforms of their own in the place of these.

    Attributes:
        graph: of the float model, with the Identity nodes.
        weights: values of the codes, by initializer, in its shape.
        biases: the same, of those that are codes too.
        read: by quantized activation, the name of what its consumers read.
        transforms: from the float value to that of its codes, by what the consumers read.
    """

    graph: TorchGraph
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    read: Mapping[str, str]
    transforms: Mapping[str, Callable[[Tensor], Tensor]]

    def run(self, feeds: Mapping[str, Tensor | ArrayLike], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute some tensors, quantized; as `TorchGraph.run`."""
        return self.graph.run({**self.weights, **self.biases, **feeds}, outputs, self.transforms)


def simulate(
    model: Model,
    entries: Iterable[PlanEntry],
    device: str | torch.device = "cpu",
    target: Target | None = None,
) -> Simulation:
    """The simulation of a plan.

    Args:
        model: canonical, and edited as the plan says (`onnxquant.pipeline.canonicalise` and `apply_edits`); not
            changed.
        entries: the plan's.
        device: what it runs on.
        target: that the plan is for; says whether biases are codes. None: they are not.

    Raises:
        OnnxquantError: an entry's tensor isn't in the model, or torch has no such device.
    """
    state = {entry.tensor: entry for entry in entries}
    graph = model.graph.copy()
    tensors, unique = graph.tensors(), UniqueNames.of_tensors(graph)
    for name in state:
        if name not in tensors:
            raise OnnxquantError(
                f"plan: tensor {name} is not in {model.name}; is the plan for another model or target?"
            )
    weights = {name: _weight(tensors[name], entry) for name, entry in state.items() if entry.role == "weight"}
    biases = dict(_biases(graph, state)) if target and "int32" in target.codes else {}
    read, transforms = {}, {}
    for name, entry in state.items():
        if entry.role == "activation":
            read[name] = _route(graph, tensors[name], entry, unique)
            transforms[read[name]] = transform(entry)
    graph.toposort(mode="nodes")
    return Simulation(TorchGraph(replace(model, graph=graph), device), weights, biases, read, transforms)


def simulate_plan(source: Source, plan: QuantizationPlan, device: str | torch.device = "cpu") -> Simulation:
    """The simulation of a whole plan, to hold the rewritten file to.

    Args:
        source: the model that the plan is for, as `onnxquant.rewrite` takes it: a `Model` is worked on in place.
        plan: of the rewrite; its target says whether biases are codes.
        device: what it runs on.

    Raises:
        OnnxquantError: the plan is for another model, or torch has no such device.
    """
    model = load(source)
    canonicalise(model)
    apply_edits(model, plan)
    return simulate(model, plan.entries, device, load_target(plan.target))


def transform(entry: PlanEntry) -> Callable[[Tensor], Tensor]:
    """From an activation's float value to that of its codes, a shift taken off before and added again."""
    quantizer, shift = entry.quantizer, entry.shift or 0.0

    def quantized(value: Tensor) -> Tensor:
        result: Tensor = quantizer.fake_quantize(value - shift) + shift if shift else quantizer.fake_quantize(value)
        return result

    return quantized


def _weight(weight: gs.Constant, entry: PlanEntry) -> Tensor:
    quantizer = entry.quantizer
    assert isinstance(quantizer, UniformQuantizer)  # weights have no other
    return torch.from_numpy(np.asarray(weight_values(weight, entry, quantizer), weight.dtype))


def _biases(graph: gs.Graph, state: Mapping[str, PlanEntry]) -> Iterator[tuple[str, Tensor]]:
    """Those that `quantize_biases` makes int32: of layers that read 8-bit codes with 8-bit codes for weights."""
    for layer in graph.nodes:
        if layer.op not in ("Conv", "Gemm") or len(layer.inputs) < 3 or not isinstance(layer.inputs[2], gs.Constant):
            continue
        bias, entries = layer.inputs[2], [state.get(tensor.name) for tensor in layer.inputs[:2]]
        scales = [
            entry.quantizer.scale
            for entry in entries
            if entry is not None
            and isinstance(entry.quantizer, UniformQuantizer)
            and entry.quantizer.bits == 8
            and (entry.consumers is None or layer.name in entry.consumers)
        ]
        if len(scales) < 2 or bias.dtype != np.float32 or bias.values.ndim != 1:
            continue
        if found := bias_codes(bias.values, *scales):
            codes, step = found
            yield bias.name, torch.from_numpy(np.asarray(codes.astype(np.float32) * step, np.float32))


def _route(graph: gs.Graph, tensor: gs.Tensor, entry: PlanEntry, unique: UniqueNames) -> str:
    """Put an Identity node between a tensor and its consumers; the name of what they read now."""
    readers = [node for node in tensor.outputs if entry.consumers is None or node.name in entry.consumers]
    value = gs.Variable(unique(f"{tensor.name}_read"), tensor.dtype, tensor.shape)
    replace_uses(tensor, value, readers)
    graph.nodes.append(gs.Node("Identity", value.name, inputs=[tensor], outputs=[value]))
    return value.name
