"""An ONNX graph that torch runs, whole or in part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import onnx_graphsurgeon as gs
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from onnxquant.errors import OnnxquantError, first_line
from onnxquant.graph.model import Source, load
from onnxquant.targets.inline import inline_functions
from onnxquant.torch_graph.steps import WAY_OUT, Step, step


class TorchGraph:
    """A model's graph as it is when this is made; what passes do to it later doesn't show.

    It computes what ONNX Runtime does but for rounding, in the types that the graph has. Weights share their memory
    with the model's where they can; nothing here writes to them, and none requires a gradient.

    Attributes:
        device: what it runs on. What is computed from shapes stays on the CPU.
        inputs: names of the graph's inputs.
        outputs: names of its outputs.
        constants: the initializers, by name.

    Args:
        model: as `onnxquant.load` takes it.
        device: "cpu", "cuda", "cuda:1" and so on.

    Raises:
        OnnxquantError: the model can't be read, or torch has no such device.
    """

    def __init__(self, model: Source, device: str | torch.device = "cpu") -> None:
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise OnnxquantError(f"device {device}: torch can't use it ({first_line(error)}); use cpu") from None
        source = load(model)
        if source.graph.functions:
            source = load(inline_functions(source.to_proto()), source.name)
        graph = source.graph
        self.inputs = [tensor.name for tensor in graph.inputs]
        self.outputs = [tensor.name for tensor in graph.outputs]
        self._makers: dict[str, Step | str] = {}
        numbers: set[str] = set()
        for node in graph.nodes:
            made = _step_or_reason(node, graph.opset)
            for position, tensor in enumerate(node.outputs):
                late = isinstance(made, Step) and position >= len(made.outputs)
                reason = f"node {node.name} ({node.op}): onnxquant computes only its first output in torch; {WAY_OUT}"
                self._makers[tensor.name] = reason if late else made
            if isinstance(made, Step):
                numbers.update(made.inputs[position] for position in made.numbers if position < len(made.inputs))
        self.constants = {
            name: _constant(tensor, torch.device("cpu") if name in numbers else self.device)
            for name, tensor in graph.tensors().items()
            if isinstance(tensor, gs.Constant)
        }

    def run(
        self,
        feeds: Mapping[str, Tensor | ArrayLike],
        outputs: Sequence[str] | None = None,
        transforms: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Compute some tensors from others, and run only the nodes between them.

        The result is differentiable with respect to every tensor fed that requires a gradient, and to what the
        transforms bring in. A value is freed when its last reader has run, unless it is an output or autograd needs it.

        Args:
            feeds: values of any tensors, by name: of graph inputs, of activations, or of initializers instead of their
                own. The shapes need not be those of the graph, as long as the nodes between can work with them.
            outputs: names of the tensors wanted; all graph outputs by default.
            transforms: by name of any tensor, what its readers, and the caller, get instead of its value: fake
                quantization, for example.

        Returns:
            The outputs, by name.

        Raises:
            OnnxquantError: a name is not in the graph, an output depends on an input that isn't fed, a node between has
                no torch form, or torch refuses the shapes.
        """
        wanted, transforms = list(self.outputs if outputs is None else outputs), transforms or {}
        self._require_known([*feeds, *transforms])
        values: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            values[name] = transforms[name](value) if name in transforms else value

        for name, value in feeds.items():
            value = value if isinstance(value, Tensor) else _from_numpy(f"tensor {name}", value)
            keep(name, value.to(self.device))
        steps = self._between(feeds, wanted)
        readers = Counter([*wanted, *(name for each in steps for name in each.inputs)])
        for name in readers:
            if name in self.constants and name not in feeds:
                keep(name, self.constants[name])
        with full_float32(self.device):
            for each in steps:
                results = each.compute([values[name] if name else None for name in each.inputs], self.device)
                for name, value in zip(each.outputs, results, strict=True):
                    if readers[name]:
                        keep(name, value)
                for name in each.inputs:
                    readers[name] -= 1
                    if not readers[name]:
                        values.pop(name, None)
                del results, value
        return {name: values[name] for name in wanted}

    def _between(self, given: Iterable[str], wanted: Sequence[str]) -> list[Step]:
        """The steps from the given tensors to the wanted ones, in an order in which they can run."""
        known = {"", *given}
        ordered: list[Step] = []

        def missing(name: str) -> bool:
            return name not in known and name not in self.constants

        pending = list(reversed(wanted))
        while pending:
            name = pending.pop()
            if not missing(name):
                continue
            made = self._maker(name)
            if before := [source for source in reversed(made.inputs) if missing(source)]:
                pending += [name, *before]
            else:
                ordered.append(made)
                known.update(made.outputs)
        return ordered

    def _maker(self, name: str) -> Step:
        """The step that computes a tensor."""
        self._require_known([name])
        made = self._makers.get(name)
        if made is None:
            raise OnnxquantError(f"input {name}: what is to be computed depends on it; feed it a value")
        if isinstance(made, str):
            raise OnnxquantError(made)
        return made

    def _require_known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._makers and name not in self.constants and name not in self.inputs:
                raise OnnxquantError(
                    f"tensor {name!r}: the graph has none of this name; names are those after the passes so far"
                )


def full_float32(device: torch.device) -> AbstractContextManager[None]:
    """Keeps convolutions on a GPU from rounding their inputs to TF32, and so from being off by 1e-3."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()


def _step_or_reason(node: gs.Node, opset: int) -> Step | str:
    try:
        return step(node, opset)
    except OnnxquantError as error:  # of interest only to those who need the node
        return str(error)


def _constant(tensor: gs.Constant, device: torch.device) -> Tensor:
    value = _from_numpy(f"initializer {tensor.name}", tensor.values)
    return value.to(device) if value.is_floating_point() or value.dtype == torch.bool else value


def _from_numpy(label: str, values: ArrayLike) -> Tensor:
    array = np.require(values, requirements=["C", "W"])  # what torch shares memory with
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise OnnxquantError(f"{label}: torch has no type for numpy's {array.dtype}; convert it to float32") from None
