"""Check a finished graph against a target, before the runtime sees it, and name every node that it would refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from onnxquant.errors import OnnxquantError
from onnxquant.targets import Target, quantization_rules, rules
from onnxquant.targets.view import View

RULES: dict[str, Callable[[View], Iterator[rules.Finding]]] = {
    rule.__name__: rule
    for rule in (
        rules.opset,
        rules.operators,
        rules.attention_inputs,
        rules.custom_operators,
        rules.dtypes,
        rules.boundary_dtypes,
        rules.layer_names,
        rules.compute_capability,
        rules.session,
        quantization_rules.codes,
        quantization_rules.zero_points,
        quantization_rules.scales,
        quantization_rules.blocks,
        quantization_rules.weight_axes,
        quantization_rules.mixed_codes,
        quantization_rules.packed_codes,
        quantization_rules.quantized_constants,
        quantization_rules.quantized_casts,
    )
}
"""By the name that targets list them with."""


@dataclass(frozen=True)
class Refusal:
    """One thing that a target would refuse.

    Attributes:
        node: the node's name, or what it computes where it has none; "" for the model as a whole. Nodes of functions
            are called ``function/node__call``.
        tensor: the tensor at fault; "" if there is none.
        rule: name of the rule that is broken.
        message: what is wrong and what to do.
    """

    node: str
    tensor: str
    rule: str
    message: str


def check_target(model: onnx.ModelProto, target: Target, compute_capability: str | None = None) -> list[Refusal]:
    """Everything that `target` would refuse in `model`, and what it would accept and compute otherwise than ONNX says.

    Args:
        model: not changed. Functions are looked into, and subgraphs.
        target: its `rules` are what is looked for.
        compute_capability: of the GPU, as ``8.6``; None leaves out what only some GPUs have.

    Raises:
        OnnxquantError: `model` is invalid, or `target` has no such compute capability.
    """
    capability = None if compute_capability is None else target.parse_compute_capability(compute_capability)
    view = View.of(model, target, capability)
    return [
        Refusal(node, tensor, name, message) for name in target.rules for node, tensor, message in RULES[name](view)
    ]


def require_accepted(model: onnx.ModelProto, target: Target, name: str, compute_capability: str | None = None) -> None:
    """Make sure that `target` accepts `model`.

    Args:
        model: as in `check_target`, and the others too.
        name: what the message calls the model.

    Raises:
        OnnxquantError: it doesn't; the message names the first node and says how many more there are.
    """
    refusals = check_target(model, target, compute_capability)
    if refusals:
        raise OnnxquantError(summary(refusals, target, name))


def summary(refusals: list[Refusal], target: Target, name: str) -> str:
    """One line about the first of `refusals`, and how many more there are."""
    first = refusals[0]
    where = f"node {first.node}: " if first.node else ""
    more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
    return f"{name}: {target.name} refuses {where}{first.message}{more}"
