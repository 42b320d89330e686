"""What each quantizer costs at the output: one at a time, all others in float.

The plan is decided once, as a rewrite decides it. Then each of its entries, or all of one block, is inserted alone, and
the outputs of the optimised model are compared with the original's. Costs don't quite add up, but those that lead the
ranking are the ones to spend bits on.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_graphsurgeon as gs

from onnxquant.blocks import Block
from onnxquant.calibration.collector import fitting_batch_size
from onnxquant.calibration.dataset import split_held
from onnxquant.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECIPE, DEFAULT_SAMPLES, DEFAULT_TARGET
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import Source, load
from onnxquant.measure.metrics import Agreement
from onnxquant.measure.trials import Trials, noise, noise_share
from onnxquant.pass_manager import PassContext
from onnxquant.pipeline import decide, describe, open_samples
from onnxquant.plan import PlanEntry


@dataclass(frozen=True)
class Cost:
    """What quantizing some tensors does to the output.

    Attributes:
        tensors: their names; one, or all of a block.
        scope: module they are in, "" where the file doesn't say.
        kind: of their block.
        quantizer: what is done to them.
        sqnr_db: of the output that suffers most.
        top1_agreement: share of the samples with the same winner in every output of shape (batch, classes); None where
            there is no such output.
        share: noise energy at the outputs, as a part of that with everything quantized. The shares need not add up
            to 1.
    """

    tensors: tuple[str, ...]
    scope: str
    kind: str
    quantizer: str
    sqnr_db: float
    top1_agreement: float | None
    share: float


@dataclass(frozen=True)
class Sensitivity:
    """Result of `sensitivity`.

    Attributes:
        costs: worst first.
        together: everything quantized.
        samples: that the outputs were compared on.
        held_back: whether those samples took no part in calibration.
    """

    costs: list[Cost]
    together: Cost
    samples: int
    held_back: bool


def sensitivity(
    model: Source,
    calibration: Any,
    *,
    recipe: str = DEFAULT_RECIPE,
    target: str = DEFAULT_TARGET,
    overrides: Sequence[str] = (),
    by: Literal["tensor", "block"] = "tensor",
    samples: int = DEFAULT_SAMPLES,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Quantize one tensor, or one block, at a time and compare the outputs with the original's.

    Args:
        model: as in `onnxquant.rewrite`.
        calibration: data to calibrate and compare on, as in `onnxquant.rewrite`.
        recipe: name or path.
        target: name of the runtime the plan is for.
        overrides: options of passes, ``pass.option=value`` each.
        by: what is quantized at a time.
        samples: the most samples to calibrate on; as many again at most are held back to compare on.
        batch_size: the most samples to run at once.
        progress: called with (models measured, models in all).

    Raises:
        OnnxquantError: bad input, or nothing to quantize.
    """
    if samples < 1:
        raise OnnxquantError(f"samples must be at least 1, got {samples}")
    source = load(model)
    original = source.to_proto()
    dataset = open_samples(source, calibration)
    if dataset is None or not len(dataset):
        raise OnnxquantError(f"{source.name}: sensitivity needs data to run on; give some with --calib")
    calibrating, held = split_held(dataset, samples)
    judged = held if len(held) else dataset
    batch_size = min(batch_size, fitting_batch_size(original, judged[0].feeds))
    context = decide(source, calibrating, recipe=recipe, target=target, overrides=overrides, batch_size=batch_size)
    entries = context.plan.entries
    groups = _groups(context, by)
    with tempfile.TemporaryFile() as file:
        trials = Trials(context, original, judged, batch_size, file)

        def agreement(chosen: list[PlanEntry], done: int) -> dict[str, Agreement]:
            progress(done, len(groups) + 1)
            return trials.agreement(chosen)

        whole = agreement(entries, 0)
        costs = [_cost(chosen, context, agreement(chosen, done), whole) for done, chosen in enumerate(groups, start=1)]
        progress(len(groups) + 1, len(groups) + 1)
    costs.sort(key=lambda cost: (cost.sqnr_db, -cost.share))
    together = replace(_cost(entries, context, whole, whole), scope="", kind="")
    return Sensitivity(costs, together, len(judged), len(held) > 0)


def _groups(context: PassContext, by: str) -> list[list[PlanEntry]]:
    """What is quantized at a time, in the order of the plan."""
    groups: dict[Any, list[PlanEntry]] = {}
    for entry in context.plan.entries:
        block = _block(context, entry)
        groups.setdefault(id(block) if by == "block" and block else entry.tensor, []).append(entry)
    return list(groups.values())


def _node(context: PassContext, entry: PlanEntry) -> gs.Node | None:
    """The node that reads a weight or makes an activation."""
    tensor = context.model.graph.tensors()[entry.tensor]
    return next(iter(tensor.outputs if entry.role == "weight" else tensor.inputs), None)


def _block(context: PassContext, entry: PlanEntry) -> Block | None:
    node = _node(context, entry)
    return context.blocks.of(node) if context.blocks and node is not None else None


def _cost(
    entries: list[PlanEntry], context: PassContext, found: dict[str, Agreement], whole: dict[str, Agreement]
) -> Cost:
    block, node = _block(context, entries[0]), _node(context, entries[0])
    counted = Counter(describe(entry) for entry in entries)
    agreeing = [a.top1_agreement for a in found.values() if a.top1_agreement is not None]
    return Cost(
        tensors=tuple(entry.tensor for entry in entries),
        scope=block.scope if block else context.model.scope(node) if node is not None else "",
        kind=block.kind if block else "other",
        quantizer="; ".join(f"{n} x {what}" if len(entries) > 1 else what for what, n in counted.items()),
        sqnr_db=min(agreement.sqnr_db for agreement in found.values()),
        top1_agreement=min(agreeing, default=None),
        share=noise_share(noise(found), noise(whole)),
    )
