"""The gradient of a loss with respect to any tensors of a graph, at the float model's own values.

The loss needs targets, and calibration data has no labels. The cross-entropy or KL divergence against the model's own
output is no way out: its minimum is the float model itself, where every gradient is zero (a known error in the public
code of PTQ4ViT, arXiv 2111.12293). Targets drawn from the distribution that the output stands for, one a sample, give
gradients whose squares estimate the Fisher information, and so the Hessian of the loss: what Hessian-weighted
objectives such as Q-HyViT's Eq. 6 ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from onnxquant.errors import OnnxquantError
from onnxquant.torch_graph.graph import TorchGraph, full_float32

Loss = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Gradient:
    """What a tensor is, and what the loss makes of a change in it.

    Attributes:
        value: the tensor O.
        gradient: dL/dO, of the same shape.
    """

    value: Tensor
    gradient: Tensor


def gradients(
    graph: TorchGraph, feeds: Mapping[str, Tensor | ArrayLike], tensors: Sequence[str], loss: Loss
) -> dict[str, Gradient]:
    """Values and gradients, in one forward and one backward.

    Autograd keeps the activations of the batch between the first of the tensors and the outputs: memory grows with the
    batch, and the result doesn't depend on how samples are split into batches (see `SampledLoss`).

    Args:
        graph: the model.
        feeds: values of the graph's inputs, or of tensors that cut them off.
        tensors: names of float tensors: activations, inputs or initializers.
        loss: from the graph's outputs, by name, to a number.

    Returns:
        By name, in the order asked for. The gradient is zero where the loss doesn't depend on the tensor.

    Raises:
        OnnxquantError: as `TorchGraph.run` and the loss; or a tensor is not float.
    """
    with torch.enable_grad(), full_float32(graph.device):
        values = _watched(graph, feeds, tensors)
        found = torch.autograd.grad(
            _total(graph, values, loss), [values[name] for name in tensors], materialize_grads=True
        )
    return {name: Gradient(values[name].detach(), each) for name, each in zip(tensors, found, strict=True)}


def typical_gradients(
    graph: TorchGraph,
    feeds: Mapping[str, Tensor | ArrayLike],
    tensors: Sequence[str],
    losses: Sequence[Loss],
    beside: Sequence[str] = (),
) -> tuple[dict[str, Gradient], dict[str, Tensor]]:
    """As `gradients`, for several losses: of each tensor the root of the mean of the squares of its gradients.

    There is one forward, and a backward for each loss; one loss' gradients are held at a time.

    Args:
        graph: as in `gradients`.
        feeds: the same.
        tensors: the same.
        losses: one or more.
        beside: names of tensors whose values alone are wanted.

    Returns:
        Values and gradients, and the values of the others.
    """
    with torch.enable_grad(), full_float32(graph.device):
        values = _watched(graph, feeds, tensors, beside)
        watched = [values[name] for name in tensors]
        squares: list[Tensor] = []
        for number, loss in enumerate(losses, start=1):
            total = _total(graph, values, loss)
            found = torch.autograd.grad(total, watched, retain_graph=number < len(losses), materialize_grads=True)
            if squares:
                for square, each in zip(squares, found, strict=True):
                    square.addcmul_(each, each)
            else:
                squares = [each.square() for each in found]
    typical = [square.div_(len(losses)).sqrt_() for square in squares]
    gradients = {name: Gradient(values[name].detach(), each) for name, each in zip(tensors, typical, strict=True)}
    return gradients, {name: values[name].detach() for name in beside}


def _watched(
    graph: TorchGraph, feeds: Mapping[str, Tensor | ArrayLike], tensors: Sequence[str], beside: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Values of the outputs and of all that is named, the tensors among them with a gradient."""

    def watched(value: Tensor) -> Tensor:
        return value if value.requires_grad or not value.is_floating_point() else value.detach().requires_grad_()

    values = graph.run(feeds, [*graph.outputs, *tensors, *beside], dict.fromkeys(tensors, watched))
    for name in tensors:
        if not values[name].requires_grad:
            raise OnnxquantError(f"tensor {name}: is not float, so it has no gradient; leave it out")
    return values


def _total(graph: TorchGraph, values: Mapping[str, Tensor], loss: Loss) -> Tensor:
    return loss({name: values[name] for name in graph.outputs})


class SampledLoss:
    """The negative log-likelihood of targets that are drawn from the model's own outputs.

    Every float output has a term; integer outputs have none. What an output stands for shows in its shape and values:

    - (batch, classes), with two classes or more: logits, or, where no value is negative and each row sums to 1,
      probabilities. The target is a class drawn from them, the term its cross-entropy.
    - All others (maps, boxes, tokens, a single number): the mean of a Gaussian whose standard deviation is the output's
      root mean square over the batch, so that outputs of different units count alike. The target is drawn from it, the
      term is half the squared distance, in standard deviations.

    Terms are summed over samples, not averaged: a sample's gradient is the same in a batch of any size. One instance
    serves all batches of a data set; targets depend on the seed, the sample's place and the output's, on nothing else.

    Args:
        seed: of the targets.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._generators: dict[int, np.random.Generator] = {}

    def __call__(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The loss, a tensor without axes.

        Args:
            outputs: of the model, by name, each with the batch axis first.

        Raises:
            OnnxquantError: no output is float, or one is not finite.
        """
        terms = [
            self._term(name, output, position)
            for position, (name, output) in enumerate(outputs.items())
            if output.is_floating_point()
        ]
        if not terms:
            raise OnnxquantError(
                f"outputs {', '.join(outputs)}: none is float, so there is no loss to differentiate; export the model "
                "with its logits as output"
            )
        return torch.stack(terms).sum()

    def _term(self, name: str, output: Tensor, position: int) -> Tensor:
        if not output.isfinite().all():
            raise OnnxquantError(f"output {name}: has NaN or infinite values; look at the samples that are fed")
        generator = self._generators.setdefault(position, np.random.default_rng([self._seed, position]))
        output = output.float()
        if output.ndim == 2 and output.shape[1] > 1:
            return _sampled_cross_entropy(output, generator)
        noise = torch.from_numpy(generator.standard_normal(output.shape, np.float32)).to(output.device)
        mean = output.detach()
        deviation = mean.square().mean().sqrt().item() or 1.0
        return ((output - (mean + deviation * noise)) / deviation).square().sum() / 2


def _sampled_cross_entropy(output: Tensor, generator: np.random.Generator) -> Tensor:
    """Summed over the rows; (batch, classes) are logits or probabilities."""
    values = output.detach()
    if (values >= 0).all() and (values.sum(1) - 1).abs().max() < 1e-3:
        output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
    cumulative = output.detach().double().softmax(1).cumsum(1)
    drawn = torch.from_numpy(generator.random((len(output), 1))).to(output.device)
    labels = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True).squeeze(1)
    return F.cross_entropy(output, labels, reduction="sum")
