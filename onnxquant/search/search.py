"""The search itself: every quantizer in turn, the others as they are by then (Q-HyViT, Algorithm 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxquant.calibration.histogram import Histogram
from onnxquant.graph.bias import takes_bias
from onnxquant.graph.topology import Topology
from onnxquant.pass_manager import PassContext
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.search.candidates import best_ratio
from onnxquant.search.checkpoint import CheckpointFile
from onnxquant.search.choices import Choice, activation_choices, weight_choices
from onnxquant.search.layers import Layer, Weighted, layer_of
from onnxquant.search.objective import Objective, OfBridge, OfLayer, OfValue
from onnxquant.search.observe import observe
from onnxquant.torch_graph import TorchGraph

if TYPE_CHECKING:
    from onnxquant.passes.search_scales import SearchScales


class Search:
    """The objectives of a graph's layers, and the plan so far.

    Attributes:
        state: the plan's entries by tensor, in its order.

    Args:
        options: see there.
        graph: that the plan is for.
        context: with the plan, what calibration saw, and its data.
    """

    def __init__(self, options: SearchScales, graph: gs.Graph, context: PassContext) -> None:
        self.options, self.context = options, context
        self.state = {entry.tensor: entry for entry in context.plan.entries}
        self._graph, self._tensors = graph, graph.tensors()
        self._composed, self._apart = 0, list[str]()  # bridges judged as a whole, and names of those that can't be
        found = (layer_of(node) for node in graph.nodes)
        self._layers = [layer for layer in found if layer is not None and self._operands(layer)]
        self._readers: dict[str, list[Layer]] = {}
        for layer in self._layers:
            for name in layer.activations:
                if name in self._operands(layer):
                    self._readers.setdefault(name, []).append(layer)
        self._alone = [
            entry.tensor
            for entry in self.state.values()
            if entry.role == "activation"
            and _is_uniform(entry)
            and (entry.consumers is None or entry.tensor not in self._readers)
        ]

    def run(self) -> Iterable[str]:
        """Observe the float model, then go through all rounds; gives notes."""
        if not self._layers and not self._alone:
            return ["the plan has no uniform quantizer that a search could choose"]
        file = CheckpointFile(self.options, self.context)
        known, steps = file.read(), list(self._steps())
        self.state.update({entry.tensor: entry for entry in known.entries})
        self._objectives = self._observe() if known.done < len(steps) else {}
        for done in range(known.done, len(steps)):
            self.context.progress(done, len(steps))
            steps[done]()
            for objective in self._objectives.values():
                objective.release()
            file.write(done + 1, self.state.values(), at_once=done + 1 == len(steps))
        self.context.progress(len(steps), len(steps))
        return self._notes()

    def _operands(self, layer: Layer) -> list[str]:
        """Those of a layer's two operands that it reads as codes of a uniform quantizer."""
        return [
            name
            for name in (layer.left, layer.right)
            if (entry := self.state.get(name)) is not None
            and _is_uniform(entry)
            and (entry.consumers is None or layer.node.name in entry.consumers)
        ]

    def _observe(self) -> dict[str, Objective]:
        """Objectives by the output of a layer, or by the tensor where that is judged alone."""
        options, data = self.options, self.context.calibration
        assert data is not None
        model = TorchGraph(self.context.model, "cuda" if torch.cuda.is_available() else "cpu")
        bridges = dict(self._bridges()) if options.bridges else {}
        self._composed = len(bridges)
        whole = {name for _, boundary in bridges.values() for name in boundary}.union(self._alone)
        seen = observe(
            self.context.model,
            model,
            self._layers,
            sorted(whole),
            data,
            places=options.places,
            kept=options.images,
            draws=options.draws,
            seed=options.seed,
            progress=self.context.progress,
        )
        objectives: dict[str, Objective] = {
            layer.output: OfLayer(layer, partial(seen.product, layer), options.metric) for layer in self._layers
        }
        for layers, boundary in bridges.values():
            bridge = OfBridge(model, layers, {name: seen.values(name) for name in boundary}, options.metric)
            objectives.update({layer.output: bridge for layer in layers})
        objectives.update({name: OfValue(name, partial(seen.values, name), options.metric) for name in self._alone})
        return objectives

    def _bridges(self) -> Iterator[tuple[str, tuple[list[Weighted], list[str]]]]:
        """By the output of a bridge, its layers, and the tensors that cut it out of the graph, its output with them."""
        if self.context.blocks is None:
            return
        topology = Topology(self._graph)
        position = {id(node): place for place, node in enumerate(topology.nodes)}
        for block in self.context.blocks.of_kind("bridge"):
            layers = [layer for layer in self._layers if isinstance(layer, Weighted) and layer.node in block.nodes]
            if len(layers) < 2:
                self._apart.append(block.scope or block.nodes[0].name)
                continue
            inner = topology.between([position[id(layers[0].node)]], [position[id(layers[-1].node)]])
            nodes = [topology.nodes[place] for place in inner]
            names = {node.name for node in nodes}
            if any(layer.node.name not in names for layer in layers):
                self._apart.append(block.scope or block.nodes[0].name)
                continue
            read = [tensor for node in nodes for tensor in topology.activation_inputs(node)]
            outer = [tensor.name for tensor in read if not any(node.name in names for node in tensor.inputs)]
            yield layers[-1].output, (layers, list(dict.fromkeys([*outer, layers[-1].output])))

    def _steps(self) -> Iterator[Callable[[], None]]:
        """One for every tensor and round, in the order of the graph."""
        for name in self._alone:
            yield partial(self._search_activation, name, [name])
        for _ in range(self.options.rounds):
            pending = {name: readers for name, readers in self._readers.items() if name not in self._alone}
            for layer in self._layers:
                if isinstance(layer, Weighted) and layer.right in self.state:
                    yield partial(self._search_weights, layer)
                for name in layer.activations:
                    if name in pending:
                        outputs = dict.fromkeys(reader.output for reader in pending.pop(name))
                        yield partial(self._search_activation, name, list(outputs))

    def _search_weights(self, layer: Weighted) -> None:
        entry, objective = self.state[layer.right], self._objectives[layer.output]
        joint = self.options.metric == "cosine" or isinstance(objective, OfBridge)
        zero_point = self.context.target.zero_point
        schemes = [scheme for scheme in self.options.schemes if zero_point or scheme == "symmetric"]
        choices = weight_choices(layer, entry, self.options.granularity, schemes, joint)
        best, least = self._least(choices, [objective])
        kept = best.model_copy(update={"rounding": entry.rounding})
        # Whole candidates are rounded to nearest, which is quick; the recipe's own rounding may do better.
        self.state[layer.right] = kept if float(self._errors([objective], 1, kept)) <= least else best

    def _search_activation(self, name: str, outputs: Sequence[str]) -> None:
        entry, seen = self.state[name], self.context.observed(name, Histogram)
        if seen is None:
            return
        tensor = self._tensors[name]
        layers = [node for node in tensor.outputs if node.name in (entry.consumers or ()) and node.op != "Add"]
        shift = bool(layers) and all(takes_bias(node, tensor) for node in layers)
        choices = activation_choices(
            entry, seen.minimum, seen.maximum, self.options.schemes, self.context.target.zero_point, shift
        )
        objectives = list(dict.fromkeys(self._objectives[output] for output in outputs))
        found, _ = self._least(choices, objectives)
        if found.shift is not None:  # a residual Add has no bias to make up for it
            found = found.model_copy(update={"consumers": [node.name for node in layers]})
        self.state[name] = found

    def _least(self, choices: Iterable[Choice], objectives: Sequence[Objective]) -> tuple[PlanEntry, float]:
        """The entry with the least error, and that."""
        span = self.options.smallest, self.options.largest
        found = [
            best_ratio(
                choice.make,
                partial(self._errors, objectives, choice.count),
                choice.count,
                self.options.candidates,
                span,
            )
            for choice in choices
        ]
        return min(found, key=itemgetter(1))

    def _errors(self, objectives: Sequence[Objective], count: int, entry: PlanEntry) -> Tensor:
        """Costs with `entry` in its tensor's place: of every channel where `count` is their number, else the sum."""
        state = {**self.state, entry.tensor: entry}
        errors = [objective.errors(state) for objective in objectives]
        return errors[0] if count > 1 else torch.stack([each.sum() for each in errors]).sum().reshape(1)

    def _notes(self) -> Iterator[str]:
        weights = [entry for entry in self.state.values() if entry.role == "weight" and _is_uniform(entry)]
        activations = [entry for entry in self.state.values() if entry.role == "activation" and _is_uniform(entry)]
        for what, entries in (("weights", weights), ("activations", activations)):
            kinds = Counter(map(_described, entries))
            yield f"{len(entries)} {what}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        if self._composed:
            yield f"{self._composed} bridges judged as a whole"
        for name in self._apart:
            yield f"bridge {name}: judged layer by layer; it takes two quantized layers and all nodes between them"
        if not self.context.target.zero_point and "asymmetric" in self.options.schemes:
            yield f"target {self.context.target.name} has no zero-points: weights symmetric, activations shifted"


def _is_uniform(entry: PlanEntry) -> bool:
    return isinstance(entry.quantizer, UniformQuantizer)


def _described(entry: PlanEntry) -> str:
    """Granularity and scheme."""
    quantizer = entry.quantizer
    assert isinstance(quantizer, UniformQuantizer)
    middle = 0 if quantizer.signed else 2 ** (quantizer.bits - 1)
    scheme = "symmetric" if (quantizer.zero_point == middle).all() else "asymmetric"
    if entry.role == "activation":
        return "shifted" if entry.shift else scheme
    return f"{scheme} by {'layer' if quantizer.axis is None else 'channel'}"
