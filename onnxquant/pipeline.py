"""The way of a model through onnxquant: load -> canonicalise -> analyse -> decide -> insert -> check."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxquant.calibration.dataset import Dataset, input_specs, open_dataset, split_held
from onnxquant.calibration.ranges import Ranges
from onnxquant.defaults import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_FLOAT_TYPE,
    DEFAULT_RECIPE,
    DEFAULT_SAMPLES,
    DEFAULT_TARGET,
    FLOAT_TYPES,
)
from onnxquant.errors import OnnxquantError
from onnxquant.gate import Judgement, judge
from onnxquant.graph.model import MINIMUM_OPSET, Model, Source, check, infer_types, load, name_nodes
from onnxquant.pass_manager import AfterEach, Pass, PassContext, PassManager, PassRun
from onnxquant.passes.apply_channel_scales import ApplyChannelScales
from onnxquant.passes.calibrate import Calibrate
from onnxquant.passes.classify_blocks import ClassifyBlocks
from onnxquant.passes.convert_to_float16 import ConvertToFloat16
from onnxquant.passes.fit_budget import FitBudget
from onnxquant.passes.fold_batch_norm import FoldBatchNorm
from onnxquant.passes.fold_constants import FoldConstants
from onnxquant.passes.fold_layer_scale import FoldLayerScale
from onnxquant.passes.insert_quantizers import InsertQuantizers
from onnxquant.passes.pack_int4 import PackInt4
from onnxquant.passes.quantize_biases import QuantizeBiases
from onnxquant.passes.share_initializers import ShareInitializers
from onnxquant.passes.unshare_initializers import UnshareInitializers
from onnxquant.plan import PlanEntry, QuantizationPlan
from onnxquant.preprocessing import Preprocessing, classes_from_metadata
from onnxquant.recipes import Recipe, build_passes, load_recipe
from onnxquant.targets import load_target
from onnxquant.targets.check import require_accepted
from onnxquant.targets.inline import inline_functions

CANONICAL_PASSES: tuple[Pass, ...] = (FoldConstants(), UnshareInitializers(), FoldBatchNorm(), FoldLayerScale())
FINAL_PASSES: tuple[Pass, ...] = (InsertQuantizers(), QuantizeBiases(), ShareInitializers(), PackInt4())


@dataclass
class Report:
    """What a rewrite found and did.

    Attributes:
        blocks: number of blocks by kind.
        quantized: number of tensors by what was done to them.
        bytes_before: size of the model as it was read.
        bytes_after: size of the rewritten one.
        exempt: tensors that a budget left in float, with the reason.
        judgement: the rewritten model beside the original; None where there was no data to run.
        runs: the passes, with seconds and notes.
        seconds: the whole rewrite.
    """

    blocks: dict[str, int] = field(default_factory=dict)
    quantized: dict[str, int] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    exempt: dict[str, str] = field(default_factory=dict)
    judgement: Judgement | None = None
    runs: list[PassRun] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sqnr_db(self) -> float | None:
        """The worst output's SQNR; None where it was not measured."""
        return self.judgement.sqnr_db if self.judgement else None


@dataclass
class RewriteResult:
    """A rewritten model, the plan it was made from, and the report."""

    model: onnx.ModelProto
    plan: QuantizationPlan
    report: Report


def rewrite(
    model: Source,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    calibration: Any = None,
    target: str | None = None,
    float_type: str = DEFAULT_FLOAT_TYPE,
    overrides: Sequence[str] = (),
    plan: QuantizationPlan | None = None,
    ranges: Ranges | None = None,
    samples: int = DEFAULT_SAMPLES,
    batch_size: int = DEFAULT_BATCH_SIZE,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    after_each: Sequence[AfterEach] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RewriteResult:
    """Quantize a model.

    Args:
        model: path, ModelProto or graphsurgeon graph, never changed; or a `Model`, which is worked on in place.
        recipe: name of a recipe, path of a recipe's TOML file, or a `Recipe`.
        calibration: what to calibrate and check on: path of an image folder, zip, .npz, .npy, polygraphy JSON or
            load_data() script, an array, a dict of arrays, an iterable of feed dicts or a `Dataset`. None: ranges that
            hold for any input, and no measured agreement.
        target: name of the runtime the result is for; the plan's own where there is a plan, else onnxruntime.
        float_type: "fp16" lets what isn't quantized compute in float16, with casts in the file; inputs and outputs stay
            float32. A plan doesn't carry it: which nodes float16 can hold is measured on the calibration data.
        overrides: options of passes, ``pass.option=value`` each.
        plan: use this instead of deciding; `recipe` and `overrides` then play no part.
        ranges: use these, from `onnxquant.calibrate`, instead of calibrating. Data that is given too
            only judges the result: on the samples that were held back when the ranges were measured.
        samples: the most samples to calibrate on. As many again at most are held back to measure the agreement.
        batch_size: the most samples to run at once. The result doesn't depend on it.
        min_sqnr: dB; the least agreement of the output with the original's. Like the two below it is a budget: where
            the recipe's result misses it, the fewest tensors that help are left in float
            (`onnxquant.passes.fit_budget`). None: 10 dB, and less is an error. -inf: whatever comes out.
        max_drop: the most top-1 accuracy to lose, 0.005 for half a point, on all samples that calibration doesn't see;
            they need labels.
        min_speedup: the least speed in ONNX Runtime on this machine, relative to the original's; for target
            onnxruntime.
        after_each: each called with (position, pass, graph) after every pass.
        progress: called with (samples done, samples in all) during calibration.

    Raises:
        OnnxquantError: bad input, of whichever kind; the message says what and what to do.
        AccuracyError: the output agrees with the original's less than `min_sqnr`; the message names the worst tensors.
        BudgetError: no choice of tensors brings the result within what was asked; the message says what came nearest.
    """
    start = time.perf_counter()
    if samples < 1 or (min_sqnr is not None and math.isnan(min_sqnr)):
        raise OnnxquantError(f"samples must be at least 1 and min_sqnr a number, got {samples} and {min_sqnr}")
    if float_type not in FLOAT_TYPES:
        raise OnnxquantError(f"--float-type {float_type}: unknown; choose one of {', '.join(FLOAT_TYPES)}")
    half = float_type == "fp16"
    if ranges is not None:
        samples = ranges.samples  # splits the same data as it was split then
    source = load(model)
    original = source.to_proto()
    dataset = open_samples(source, calibration)
    calibrating = held = unseen = None
    if dataset is not None:
        calibrating, kept = split_held(dataset, samples)
        held, unseen = (kept, calibrating.rest()) if len(kept) else (dataset, dataset)
    runtime = load_target(target or (plan.target if plan else DEFAULT_TARGET))
    context = PassContext(
        source,
        runtime,
        calibration=calibrating,
        held=held,
        unseen=unseen,
        ranges=ranges,
        batch_size=batch_size,
        progress=progress,
    )
    budget = FitBudget(min_sqnr=min_sqnr, max_drop=max_drop, min_speedup=min_speedup)

    if plan is None:
        steps, provided = _deciding_passes(context, recipe, overrides), frozenset[str]()
        steps += [budget] if budget.limits else []
    else:
        context.plan, provided = plan, frozenset({"plan"})
        steps = [*CANONICAL_PASSES, *([ClassifyBlocks()] if half else []), *_editing_passes(plan)]
        steps += [Calibrate()] if half else []
    insert, biases, *storing = FINAL_PASSES
    final = [insert, biases, *([ConvertToFloat16()] if half else []), *storing]
    manager = PassManager([*steps, *final], provided, after_each)

    report = Report(bytes_before=source.size_bytes)
    report.runs = manager.run(context)
    _require_entries(context, report.runs)
    rewritten = check(source.to_proto(), source.name)
    if not runtime.functions:
        rewritten = check(inline_functions(rewritten), source.name)
    if runtime.opsets:
        require_accepted(rewritten, runtime, source.name)
    report.blocks = context.blocks.count() if context.blocks else {}
    report.quantized = dict(Counter(describe(entry) for entry in context.plan.entries))
    report.bytes_after = rewritten.ByteSize()
    report.exempt = dict(context.plan.exempt)
    if held is not None:
        report.judgement = judge(original, rewritten, context, budget, half)
    for step in steps:
        if state := getattr(step, "resume", None):
            state.unlink(missing_ok=True)  # there is nothing to go on with
    report.seconds = time.perf_counter() - start
    return RewriteResult(rewritten, context.plan, report)


def decide(
    model: Model,
    calibration: Dataset,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    target: str = DEFAULT_TARGET,
    overrides: Sequence[str] = (),
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> PassContext:
    """Decide on a model's quantizers as `rewrite` does, and insert none.

    Args:
        model: its graph is brought into canonical form.
        calibration: all of these samples are calibrated on.
        recipe: as in `rewrite`; the other arguments too.

    Returns:
        The context, with plan and blocks.

    Raises:
        OnnxquantError: bad input, or nothing to quantize.
    """
    context = PassContext(model, load_target(target), calibration=calibration, batch_size=batch_size)
    _require_entries(context, PassManager(_deciding_passes(context, recipe, overrides)).run(context))
    return context


def canonicalise(model: Model) -> list[PassRun]:
    """Bring the graph into the form that analyses rely on; it computes the same as before."""
    return PassManager(CANONICAL_PASSES).run(PassContext(model))


def apply_edits(model: Model, plan: QuantizationPlan) -> None:
    """Make of a canonical graph the one that `plan` names the tensors of; it computes the same."""
    PassManager(_editing_passes(plan), frozenset({"plan"})).run(PassContext(model, load_target(plan.target), plan))


def run_stage(step: Pass, graph: gs.Graph, calibration: Any, target: str) -> gs.Graph:
    """Run one pass on a graphsurgeon graph, with the analyses it needs before it and insertion after it."""
    if graph.opset < MINIMUM_OPSET:
        raise OnnxquantError(
            f"graph {graph.name}: opset {graph.opset} has no per-channel DequantizeLinear; "
            "read the model with onnxquant.load"
        )
    name_nodes(graph)
    graph.toposort(mode="nodes")  # sorting functions as well never ends in graphsurgeon 0.6.1 where there are subgraphs
    infer_types(graph)
    model = Model(graph, name=graph.name or "graph")
    dataset = open_samples(model, calibration)
    steps: list[Pass] = [*CANONICAL_PASSES, ClassifyBlocks(), Calibrate(), step]
    if "plan" in step.provides:
        steps += FINAL_PASSES
    for run in PassManager(steps).run(PassContext(model, load_target(target), calibration=dataset)):
        if run.name == step.pass_name():
            level = logging.INFO if run.result.modified or "plan" in step.provides else logging.WARNING
            logging.getLogger("onnxquant").log(level, "%s: %s", run.name, "; ".join(run.result.notes))
    return graph


def open_samples(model: Model, source: Any, per_class: slice | None = None) -> Dataset | None:
    """The samples to calibrate on, read as the model's metadata says; None for None.

    Args:
        model: see there.
        source: what `rewrite` takes.
        per_class: positions of the samples of each class, where the source has classes; None for all.
    """
    if source is None:
        return None
    preprocessing = Preprocessing.from_metadata(model.metadata, model.name)
    classes = classes_from_metadata(model.metadata, model.name)
    return open_dataset(source, input_specs(model.graph), preprocessing, per_class, classes)


def describe(entry: PlanEntry) -> str:
    """What an entry does to its tensor, for reports."""
    bits, stored = entry.quantizer.bits, 4 if entry.stored == "int4" else 8
    how = " (stored in int4)" if bits == stored == 4 else f" (emulated: stored in {stored})" if bits < stored else ""
    return f"{entry.role}, {entry.quantizer.kind} {bits} bit{how}"


def _editing_passes(plan: QuantizationPlan) -> list[Pass]:
    """Those that make of a canonical graph the one that `plan` names the tensors of."""
    scaling = [ApplyChannelScales()] if plan.channel_scales else []
    return [*build_passes(Recipe.model_validate({"pass": plan.edits})), *scaling]


def _deciding_passes(context: PassContext, recipe: str | Recipe, overrides: Sequence[str]) -> list[Pass]:
    """The canonical passes and those of the recipe, which the context's plan is marked with."""
    if isinstance(recipe, str):
        context.plan.recipe, recipe = recipe, load_recipe(recipe)
    context.plan.target = context.target.name
    steps = build_passes(recipe, list(overrides))
    for own in (ApplyChannelScales(), FitBudget(), *FINAL_PASSES, ConvertToFloat16()):
        if any(isinstance(step, type(own)) for step in steps):
            named = f"recipe {context.plan.recipe or 'given'}"
            raise OnnxquantError(f"{named}: {own.pass_name()} runs of itself where it is needed; leave it out")
    context.plan.edits = [
        {"name": step.pass_name(), **step.model_dump(mode="json", exclude_defaults=True)}
        for step in steps
        if step.edits
    ]
    return [*CANONICAL_PASSES, *steps]


def _require_entries(context: PassContext, runs: Sequence[PassRun]) -> None:
    if not context.plan.entries:
        said = "; ".join(note for run in runs for note in run.result.notes if run.name.startswith("quantize_"))
        raise OnnxquantError(f"{context.model.name}: nothing to quantize ({said or 'the plan is empty'})")
