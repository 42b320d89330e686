"""One run over the calibration data: what each layer reads, how much the loss minds a change of what it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.graph.model import Model
from onnxquant.search.layers import Layer, Product
from onnxquant.search.pieces import Pieces
from onnxquant.torch_graph import Gradient, SampledLoss, TorchGraph, typical_gradients


@dataclass(frozen=True)
class Observed:
    """What was seen.

    Attributes:
        pieces: of layers' products, by the name of the output; of tensors asked for, by theirs, each with its gradient.
    """

    pieces: Pieces

    def product(self, layer: Layer) -> Product:
        """What a layer computed, at the places looked at."""
        return layer.product(self.pieces.read(layer.output))

    def values(self, name: str) -> list[Gradient]:
        """A tensor that was asked for, one a batch."""
        return [Gradient(value, gradient) for value, gradient in self.pieces.read(_whole(name))]


def observe(
    model: Model,
    graph: TorchGraph,
    layers: Sequence[Layer],
    whole: Collection[str],
    data: Dataset,
    *,
    places: int,
    kept: int,
    draws: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Observed:
    """Run the float model forward and backward on every sample.

    Args:
        model: that `graph` computes.
        graph: see there.
        layers: to take pieces of.
        whole: names of tensors to keep as they are.
        data: samples.
        places: of each layer, over all samples.
        kept: batches that `whole` is kept of.
        draws: of the classes that the loss is taken against; the gradient is the root of the mean of their squares. A
            model that is sure of itself has next to none for most draws, and a large one for the rare class.
        seed: of the places and of the loss.
        progress: called with (samples done, samples in all).

    Raises:
        OnnxquantError: torch can't compute the graph; the message names the node.
    """
    pieces = Pieces([*(layer.output for layer in layers), *map(_whole, whole)], graph.device)
    read = list(dict.fromkeys(name for layer in layers for name in layer.activations))
    written = [layer.output for layer in layers]
    losses, done = [SampledLoss(seed + draw) for draw in range(draws)], 0
    each = math.ceil(places / len(data))
    for number, batch in enumerate(batches(data, 1, input_specs(model.graph))):
        kept_now = list(whole) if number < kept else []
        wanted = list(dict.fromkeys([*written, *kept_now]))
        found, values = typical_gradients(graph, batch.feeds, wanted, losses, read)
        for position, layer in enumerate(layers):
            chosen = np.random.default_rng([seed, number, position])
            piece = layer.piece(values, found[layer.output].gradient, each * batch.valid, chosen)
            pieces.add(layer.output, piece)
        for name in kept_now:
            pieces.add(_whole(name), (found[name].value, found[name].gradient))
        done += batch.valid
        progress(done, len(data))
    return Observed(pieces)


def _whole(name: str) -> str:
    """What the pieces of a tensor that is kept as it is are called: a layer's output may be one."""
    return f"{name} as it is"
