"""The gate: what the optimised runtime makes of a rewritten model has to be what was asked for; else it is an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx

from onnxquant.calibration.collector import fitting_batch_size
from onnxquant.errors import AccuracyError, BudgetError
from onnxquant.graph.float16 import rounded
from onnxquant.measure.accuracy import Accuracy, evaluate, require_resolved
from onnxquant.measure.compare import Layer, compare
from onnxquant.measure.latency import Latency, compare_latency
from onnxquant.measure.metrics import Agreement
from onnxquant.pass_manager import PassContext
from onnxquant.passes.fit_budget import FitBudget
from onnxquant.plan import QuantizationPlan

WORST_NAMED = 3
"""Tensors named when a rewrite fails its tolerance."""


@dataclass(frozen=True)
class Judgement:
    """What was measured of a rewritten model beside the original.

    Attributes:
        agreement: of their outputs, both in optimised ONNX Runtime, by output name.
        samples: the agreement was measured on.
        held_back: whether those samples took no part in calibration.
        accuracy: of the original and of the rewritten model, where a drop was limited.
        latency: of the two on this machine; None unless the model is for ONNX Runtime and computes on integers, or a
            speed was asked for.
    """

    agreement: dict[str, Agreement]
    samples: int
    held_back: bool
    accuracy: tuple[Accuracy, Accuracy] | None = None
    latency: Latency | None = None

    @property
    def sqnr_db(self) -> float:
        """The worst output's."""
        return min((output.sqnr_db for output in self.agreement.values()), default=math.inf)

    @property
    def measured_on(self) -> str:
        """The samples, in words."""
        noun = "sample" if self.samples == 1 else "samples"
        return (
            f"{self.samples} held-back {noun}"
            if self.held_back
            else f"{self.samples} {noun}, which calibration saw too"
        )


def judge(
    original: onnx.ModelProto, rewritten: onnx.ModelProto, context: PassContext, budget: FitBudget, half: bool
) -> Judgement:
    """Measure a rewritten model on the context's held samples.

    Args:
        original: as it was read.
        rewritten: as it would be written.
        context: that the plan was decided in, with held samples.
        budget: what is asked for; `DEFAULT_MIN_SQNR` where that is nothing.
        half: whether the model computes in float16. ONNX Runtime does most of that in float32 on a CPU, and would not
            show what overflows elsewhere: a model that rounds and overflows as float16 does is judged.

    Raises:
        AccuracyError: the outputs differ by more than is allowed.
        BudgetError: the model is slower than is allowed.
    """
    held, unseen, name = context.held, context.unseen, context.model.name
    assert held is not None
    assert unseen is not None
    batch_size = min(context.batch_size, fitting_batch_size(original, held[0].feeds))
    computed = rounded(rewritten) if half else rewritten
    agreement = compare(original, computed, held, batch_size=batch_size, per_layer=False).outputs
    judgement = Judgement(agreement, len(held), unseen is not held)
    if judgement.sqnr_db < budget.least_sqnr:
        layers = compare(original, computed, held, batch_size=batch_size, per_layer=True).layers
        raise _disagreement(layers, judgement.sqnr_db, budget, name)
    accuracy, latency = None, None
    if budget.max_drop is not None:
        require_resolved(unseen, budget.max_drop)
        before, after = (evaluate(model, unseen, batch_size) for model in (original, computed))
        accuracy = before, after
        if (drop := before.top1 - after.top1) > budget.max_drop:
            raise AccuracyError(
                f"{name}: the rewritten model's top-1 accuracy is {after.top1:.2%}, {drop * 100:.2f} points below the "
                f"original's {before.top1:.2%} on {before.samples} samples ({budget}); use more bits or another recipe"
            )
    if budget.min_speedup is not None or (context.target.name == "onnxruntime" and _on_integers(context.plan)):
        latency = compare_latency(original, rewritten, held, name)
        if budget.min_speedup is not None and 1 / latency.ratio < budget.min_speedup:
            raise BudgetError(
                f"{name}: the rewritten model is {1 / latency.ratio:.2f} times as fast as the original in ONNX Runtime "
                f"on this machine ({budget}); let the recipe decide instead of a plan, or ask for less"
            )
    return replace(judgement, accuracy=accuracy, latency=latency)


def _on_integers(plan: QuantizationPlan) -> bool:
    return any(
        entry.role == "activation" and entry.quantizer.kind in ("uniform", "per-token") for entry in plan.entries
    )


def _disagreement(layers: list[Layer], sqnr: float, budget: FitBudget, name: str) -> AccuracyError:
    """What to tell of outputs that agree too little: the tensors that do so least, which come first."""
    if sqnr == -math.inf and layers:  # among equals, the first that the model computes comes first
        return AccuracyError(
            f"{name}: the rewritten model overflows: tensor {layers[0].tensor} is the first with NaN or infinite "
            "values; calibrate on samples that show values as large, or leave out --float-type fp16"
        )
    worst = ", ".join(f"{layer.tensor} ({layer.sqnr_db:.1f} dB)" for layer in layers[:WORST_NAMED])
    least = f"{budget.least_sqnr:g} dB"
    remedy = "use more bits" if budget.limits_noise else "let --min-sqnr 20 leave what costs most in float"
    return AccuracyError(
        f"{name}: the rewritten model's output agrees with the original's to {sqnr:.1f} dB, and less than {least} is "
        f"not accepted (--min-sqnr); worst tensors: {worst}; exclude their layers, or {remedy}"
    )
