"""One run over the calibration data: what each layer reads, how much the loss minds a change of what it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.graph.model import Model
from onnxquant.search.layers import Layer, Piece, Product
from onnxquant.torch_graph import Gradient, SampledLoss, TorchGraph, gradients


@dataclass(frozen=True)
class Observed:
    """What was seen.

    Attributes:
        products: by the name of a layer's output.
        values: whole tensors, by name, one a batch: those asked for, of the first batches.
    """

    products: dict[str, Product]
    values: dict[str, list[Gradient]]


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
    pieces: dict[str, list[Piece]] = {layer.output: [] for layer in layers}
    values: dict[str, list[Gradient]] = {name: [] for name in whole}
    read = [name for layer in layers for name in (*layer.activations, layer.output)]
    losses, done = [SampledLoss(seed + draw) for draw in range(draws)], 0
    each = math.ceil(places / len(data))
    for number, batch in enumerate(batches(data, 1, input_specs(model.graph))):
        wanted = list(dict.fromkeys([*read, *(whole if number < kept else ())]))
        found = _averaged([gradients(graph, batch.feeds, wanted, loss) for loss in losses])
        for position, layer in enumerate(layers):
            chosen = np.random.default_rng([seed, number, position])
            pieces[layer.output].append(layer.piece(found, each * batch.valid, chosen))
        if number < kept:
            for name in whole:
                values[name].append(found[name])
        done += batch.valid
        progress(done, len(data))
    return Observed({layer.output: layer.product(pieces.pop(layer.output)) for layer in layers}, values)


def _averaged(draws: Sequence[dict[str, Gradient]]) -> dict[str, Gradient]:
    """The value, which is the same in all draws, with the root mean square of the gradients."""
    return {
        name: Gradient(first.value, torch.stack([draw[name].gradient.square() for draw in draws]).mean(0).sqrt())
        for name, first in draws[0].items()
    }
