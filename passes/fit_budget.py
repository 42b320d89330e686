"""Bring a plan within a budget, by leaving the fewest tensors in float, or giving them 8 bits, that the result needs.

What counts is what the optimised runtime computes. Each entry of the plan is inserted alone first, and the tensors that
cost the output most go first. How many have to go is found by bisection, with all others quantized; then each of them
is quantized again where the budget holds all the same.

Speed is won in a like way: the layers that do the least work for each value they move gain least from integers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import IO, Annotated, ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from onnxquant.calibration.collector import fitting_batch_size
from onnxquant.defaults import DEFAULT_MIN_SQNR
from onnxquant.errors import BudgetError, OnnxquantError
from onnxquant.measure.accuracy import evaluate, require_resolved
from onnxquant.measure.latency import compare_latency
from onnxquant.measure.trials import Trials, noise, noise_share
from onnxquant.pass_manager import Pass, PassContext, PassResult
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.targets.placement import intensity

Entries = list[PlanEntry]

PARTS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of the integer layers, tried in float for speed."""

NAMED = 5
"""Tensors that a note names; the plan has all of them."""


class FitBudget(Pass):
    """Leave tensors in float where the result would miss the budget. Runs after a recipe, where a budget is given.

    Attributes:
        min_sqnr: dB; least agreement of the worst output with the original's, on the samples held back.
        max_drop: top-1 accuracy to lose at most, 0.005 for half a point, on all samples that calibration doesn't see.
        min_speedup: least speed relative to the original's, in ONNX Runtime on this machine.
    """

    min_sqnr: float | None = None
    max_drop: Annotated[float, Field(ge=0, lt=1)] | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None

    requires: ClassVar[frozenset[str]] = frozenset({"plan"})

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        """Edit the plan.

        Raises:
            BudgetError: nothing reaches the budget; the message says what came nearest.
            OnnxquantError: no data to judge on, or not of a kind that the budget can be judged on.
        """
        if context.held is None or context.unseen is None:
            raise OnnxquantError(f"{self}: the result is judged on data; give some with --calib")
        if not context.plan.entries:
            return PassResult(False, ("the plan is empty",))
        with tempfile.TemporaryFile() as file:
            search = _Search(self, graph, context, file)
            if self.limits_noise or self.max_drop is not None:
                search.fit_accuracy()
            if self.min_speedup is not None:
                search.fit_speed(self.min_speedup)
        context.plan.exempt = {
            entry.tensor: search.reasons.get(entry.tensor, f"nothing but layers left in float needs it ({self})")
            for entry in context.plan.entries
            if entry.tensor not in {kept.tensor for kept in search.entries}
        }
        context.plan.entries = search.entries
        return PassResult(False, tuple(search.notes))

    @property
    def least_sqnr(self) -> float:
        """dB; what counts as broken where nothing is said."""
        return DEFAULT_MIN_SQNR if self.min_sqnr is None else self.min_sqnr

    @property
    def limits_noise(self) -> bool:
        return self.min_sqnr not in (None, -math.inf)

    @property
    def limits(self) -> bool:
        """Whether there is anything that a result could miss."""
        return self.limits_noise or self.max_drop is not None or self.min_speedup is not None

    def __str__(self) -> str:
        """The options as they are given on the command line."""
        given = [f"--min-sqnr {self.min_sqnr:g}"] if self.limits_noise else []
        given += [f"--max-drop {self.max_drop * 100:g}%"] if self.max_drop is not None else []
        given += [f"--min-speedup {self.min_speedup:g}"] if self.min_speedup is not None else []
        return " ".join(given)


class _Search:
    """The best entries so far, why others went, and what there is to tell."""

    def __init__(self, budget: FitBudget, graph: gs.Graph, context: PassContext, file: IO[bytes]) -> None:
        assert context.held is not None
        assert context.unseen is not None
        self.budget, self.graph, self.context = budget, graph, context
        self.entries: Entries = context.plan.entries
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self._original, self._held, self._unseen = context.model.to_proto(), context.held, context.unseen
        self._batch_size = min(context.batch_size, fitting_batch_size(self._original, context.held[0].feeds))
        self._trials = Trials(context, self._original, context.held, self._batch_size, file)
        self._top1 = 0.0
        if budget.max_drop is not None:
            require_resolved(self._unseen, budget.max_drop)
            self._top1 = evaluate(self._original, self._unseen, self._batch_size).top1
        self._best: tuple[float, str] = (float("-inf"), "")

    def fit_accuracy(self) -> None:
        """Raise the bits of the fewest tensors; where that isn't enough, leave the fewest in float."""
        if self._accurate(self.entries):
            self.notes.append(f"within {self.budget} as decided")
            return
        decided, ranked = self.entries, self._rank()
        finer = _redecide(self.context)
        low = [tensor for tensor in ranked if tensor in finer]

        def raised(chosen: Collection[str]) -> Entries:
            return [finer[entry.tensor] if entry.tensor in chosen else entry for entry in decided]

        def exempted(chosen: Collection[str]) -> Entries:
            return _without(raised(low), chosen, self.graph)

        if low and (chosen := self._fewest(low, raised)) is not None:
            self._keep(raised(chosen), chosen, "raised to 8 bits")
            return
        while not exempted(ranked):
            ranked.pop()
        chosen = self._fewest(ranked, exempted)
        if chosen is None:
            raise BudgetError(
                f"{self.context.model.name}: {self.budget} can't be reached; the best is {self._best[1]}, with all but "
                f"{len(exempted(ranked))} of {len(decided)} tensors left in float"
            )
        needed = self._give_back(low, lambda kept: _without(raised(kept), chosen, self.graph)) if low else []
        self._keep(_without(raised(needed), chosen, self.graph), chosen, "left in float")
        if needed:
            self.notes.append(f"{len(needed)} raised to 8 bits")

    def fit_speed(self, least: float) -> None:
        """Leave layers in float, those with the least work for each value they move first.

        Raises:
            BudgetError: no number of them that is tried is quick enough.
            OnnxquantError: the target is another runtime.
        """
        if self.context.target.name != "onnxruntime":
            raise OnnxquantError(
                f"--min-speedup {least:g}: measured in ONNX Runtime, which target {self.context.target.name} isn't; "
                "build the engine and use onnxquant bench"
            )
        reached = {0: self._speed(self.entries)}
        if reached[0] >= least:
            self.notes.append(f"{reached[0]:.2f} times as fast as the original as decided")
            return
        layers = _integer_layers(self.entries, self.graph)
        for count in sorted({round(len(layers) * part) for part in PARTS} - {0, len(layers)}):
            chosen = [layer.inputs[1].name for layer in layers[:count]]
            entries = _without(self.entries, chosen, self.graph)
            reached[count] = self._speed(entries)
            if reached[count] >= least:
                for tensor in chosen:
                    self.reasons[tensor] = f"its layer gains too little from integers (--min-speedup {least:g})"
                self.entries = entries
                self.notes.append(
                    f"{count} of {len(layers)} integer layers left in float: {reached[count]:.2f} times as fast as the "
                    f"original instead of {reached[0]:.2f}"
                )
                return
        best = max(reached, key=reached.__getitem__)
        hint = "" if layers else "; no layer of this plan runs on integers, which recipe w8a8 has"
        raise BudgetError(
            f"{self.context.model.name}: --min-speedup {least:g} can't be reached on this machine; the best is "
            f"{reached[best]:.2f} with {best} of {len(layers)} integer layers left in float{hint}"
        )

    def _keep(self, entries: Entries, chosen: list[str], done: str) -> None:
        self.entries = entries
        for tensor in chosen:
            self.reasons[tensor] = f"{self._share(tensor)} of the noise when quantized alone ({self.budget})"
        named = ", ".join(f"{tensor} ({self._share(tensor)})" for tensor in chosen[:NAMED])
        more = f" and {len(chosen) - NAMED} more" if len(chosen) > NAMED else ""
        self.notes.append(
            f"{len(chosen)} of {len(self.context.plan.entries)} tensors {done} for {self.budget}, with their shares of "
            f"the noise: {named}{more}"
        )

    def _share(self, tensor: str) -> str:
        return f"{noise_share(self._alone[tensor], self._whole):.0%}"

    def _rank(self) -> list[str]:
        """Tensors by the noise that each makes alone, worst first."""
        self._whole = noise(self._trials.agreement(self.entries))
        self._alone: dict[str, float] = {}
        for done, entry in enumerate(self.entries):
            self.context.progress(done, len(self.entries))
            self._alone[entry.tensor] = noise(self._trials.agreement([entry]))
        return sorted(self._alone, key=self._alone.__getitem__, reverse=True)

    def _fewest(self, ranked: list[str], change: Callable[[Collection[str]], Entries]) -> list[str] | None:
        """The shortest leading part of `ranked` that brings the result within the budget when changed, less those of
        it that needn't be; None where all of it doesn't.
        """
        low, high = 0, len(ranked)  # with `low` it doesn't fit
        if not high or not self._accurate(change(ranked)):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._accurate(change(ranked[:middle])):
                high = middle
            else:
                low = middle
        last = ranked[high - 1]  # without it, it doesn't fit
        return [*self._give_back(ranked[: high - 1], lambda kept: change([*kept, last])), last]

    def _give_back(self, chosen: list[str], change: Callable[[Collection[str]], Entries]) -> list[str]:
        """Those of `chosen` that the budget needs changed; the ones that cost least are tried first."""
        for tensor in reversed(chosen[:]):
            fewer = [other for other in chosen if other != tensor]
            if self._accurate(change(fewer)):
                chosen = fewer
        return chosen

    def _accurate(self, entries: Entries) -> bool:
        """Whether the runtime's result is within the budget."""
        sqnr = min(output.sqnr_db for output in self._trials.agreement(entries).values())
        fits = sqnr >= self.budget.least_sqnr
        reached, said = sqnr, f"{sqnr:.1f} dB"
        if fits and self.budget.max_drop is not None:
            drop = self._top1 - evaluate(self._trials.model(entries), self._unseen, self._batch_size).top1
            fits = drop <= self.budget.max_drop
            reached, said = -drop, f"{said} and {drop:.2%} of top-1 lost"
        self._best = max(self._best, (reached, said))
        return fits

    def _speed(self, entries: Entries) -> float:
        model = self._trials.model(entries)
        return 1 / compare_latency(self._original, model, self._held, self.context.model.name).ratio


def _redecide(context: PassContext) -> dict[str, PlanEntry]:
    """What the recipe decides with 8 bits, for the tensors that have fewer."""
    plan = QuantizationPlan()
    for step in context.earlier:
        if "plan" in step.provides | step.requires and not step.edits:
            finer = step.model_copy(update={"bits": 8}) if getattr(step, "bits", 8) < 8 else step
            finer.run(context.model.graph, replace(context, plan=plan))
    low = {entry.tensor for entry in context.plan.entries if entry.quantizer.bits < 8}
    return {entry.tensor: entry for entry in plan.entries if entry.tensor in low and entry.quantizer.bits == 8}


def _without(entries: Entries, exempt: Collection[str], graph: gs.Graph) -> Entries:
    """The entries but for those of `exempt` tensors, and for activations that only layers with such a weight need."""
    tensors = graph.tensors()
    weights = {entry.tensor for entry in entries if entry.role == "weight"}
    float_layers = {tensors[name].outputs[0].name for name in weights.intersection(exempt)}
    integer_layers = {tensors[name].outputs[0].name for name in weights.difference(exempt)}
    kept = []
    for entry in entries:
        if entry.tensor in exempt:
            continue
        tensor, consumers = tensors[entry.tensor], entry.consumers
        if consumers is not None:
            consumers = [name for name in consumers if name not in float_layers]
            if all(node.op == "Add" for node in tensor.outputs if node.name in consumers):
                consumers = []  # a residual shares the codes of a layer, and gains nothing by codes of its own
        elif entry.role == "activation" and _writer(tensor) in float_layers:
            consumers = [node.name for node in tensor.outputs if node.name in integer_layers]
        if consumers != []:
            kept.append(entry.model_copy(update={"consumers": consumers}))
    return kept


def _writer(tensor: gs.Tensor) -> str:
    """The layer whose integer kernel writes a value, a Relu behind it being a part of it."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is not None and node.op == "Relu" and node.inputs[0].inputs:
        node = node.inputs[0].inputs[0]
    return node.name if node is not None else ""


def _integer_layers(entries: Entries, graph: gs.Graph) -> list[gs.Node]:
    """The layers with quantized weight and input, those with the least work for each value they move first."""
    tensors = graph.tensors()
    layers = [tensors[entry.tensor].outputs[0] for entry in entries if entry.role == "weight"]
    read = {entry.tensor for entry in entries if entry.role == "activation"}
    return sorted((layer for layer in layers if layer.inputs[0].name in read), key=intensity)
