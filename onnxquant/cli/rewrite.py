"""`onnxquant rewrite`: the main verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxquant.cli.options import BatchSize, Json, PerClass, Preprocess
from onnxquant.defaults import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_FLOAT_TYPE,
    DEFAULT_MIN_SQNR,
    DEFAULT_RECIPE,
    DEFAULT_SAMPLES,
    DEFAULT_TARGET,
    FLOAT_TYPES,
)

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from onnxquant.calibration.dataset import Dataset
    from onnxquant.cli.options import ProgressBar
    from onnxquant.pass_manager import AfterEach, Pass
    from onnxquant.pipeline import RewriteResult

PIPE = Path("-")
"""As MODEL stdin, as OUTPUT stdout."""


def rewrite_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file; - is stdin.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", show_default="MODEL.q.onnx beside the input", help="File to write; - is stdout."
        ),
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(help="Calibration data: image folder or zip, .npz, .npy, polygraphy JSON or load_data() script."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(show_default=DEFAULT_RECIPE, help="Recipe name, or path of a recipe's .toml file.")
    ] = None,
    target: Annotated[str | None, typer.Option(show_default=DEFAULT_TARGET, help="Runtime the result is for.")] = None,
    float_type: Annotated[
        str, typer.Option(metavar="|".join(FLOAT_TYPES), help="Type of what is not quantized, but for what overflows.")
    ] = DEFAULT_FLOAT_TYPE,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[PASS.]OPTION=VALUE", help="Change an option of passes."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to calibrate on, at most.")] = DEFAULT_SAMPLES,
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            show_default=f"{DEFAULT_MIN_SQNR:g}, and nothing is written below it",
            help="Budget, in dB: least agreement with the original; the fewest tensors that help are left in float.",
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT", help="Budget: top-1 accuracy to lose at most, as in 0.5%; needs labelled data."
        ),
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Budget: least speed in ONNX Runtime here, relative to the original's.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Apply this plan instead of deciding.")] = None,
    ranges: Annotated[
        Path | None, typer.Option(help="Use these ranges, from `onnxquant calibrate`, instead of calibrating.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Keep a search's state in this file, and go on from it after an interruption.")
    ] = None,
    plan_out: Annotated[Path | None, typer.Option(help="Write the plan, as JSON.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report, as one HTML page.")] = None,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Check the graph and its outputs after every pass.")
    ] = False,
    dump_dir: Annotated[Path | None, typer.Option(help="Write the graph after every pass to this folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow OUTPUT to be the input itself.")] = False,
    as_json: Json = False,
) -> None:
    """Quantize a model: ONNX in, ONNX out."""
    from onnxquant.calibration.ranges import Ranges
    from onnxquant.cli import rewritten
    from onnxquant.cli.options import check_outputs, open_data, parse_percent, print_json, progress_bar
    from onnxquant.errors import OnnxquantError
    from onnxquant.files import write_text
    from onnxquant.graph.model import load, read_stream, save, save_stream
    from onnxquant.pipeline import rewrite
    from onnxquant.plan import QuantizationPlan
    from onnxquant.recipes import load_recipe

    piped_in, piped_out = model == PIPE, output == PIPE
    _check_pipes(piped_in, output, as_json)
    loaded = load(read_stream(sys.stdin.buffer, "stdin"), "stdin") if piped_in else load(model)
    output = output or model.with_suffix(".q.onnx")
    inputs = {"--calib": calib, "--plan": plan, "--ranges": ranges, "--recipe": recipe}
    outputs = {"-o": None if piped_out else output, "--plan-out": plan_out, "--report": report}
    check_outputs(outputs, inputs if overwrite or piped_in else {"MODEL": model, **inputs})
    if plan and (recipe or overrides or ranges or resume):
        raise OnnxquantError("--plan: holds all decisions already; leave out --recipe, --set, --ranges and --resume")
    needing: dict[str, object] = {"--per-class": per_class, "--preprocess": preprocess, "--verify-each": verify_each}
    needing |= {"--max-drop": max_drop, "--min-speedup": min_speedup}
    if not calib and (option := next((option for option, value in needing.items() if value), None)):
        raise OnnxquantError(f"{option}: needs data; give some with --calib")
    measured = Ranges.from_json(ranges) if ranges else None
    samples = measured.samples if measured else samples
    if report:
        from onnxquant.report import check_report

        check_report(report, "--report")
    dataset = open_data(calib, loaded, per_class, preprocess, option="--calib") if calib else None
    original = loaded.to_proto() if report else None
    hooks: list[AfterEach] = []
    if dump_dir:
        from onnxquant.verify import DumpEach

        hooks.append(DumpEach(loaded, dump_dir))
    if verify_each:
        from onnxquant.verify import VerifyEach

        assert dataset is not None
        hooks.append(VerifyEach(loaded, dataset, lambda line: typer.echo(line, err=True)))
    stages = [] if plan else [str(step.get("name")) for step in load_recipe(recipe or DEFAULT_RECIPE).passes]
    with progress_bar("rewrite") as progress:
        hooks.insert(0, _named_after([*stages, "fit_budget"], progress))
        result = rewrite(
            loaded,
            recipe=recipe or DEFAULT_RECIPE,
            calibration=dataset,
            target=target,
            float_type=float_type,
            overrides=[*(overrides or ()), *([f"resume={resume}"] if resume else [])],
            plan=QuantizationPlan.from_json(plan) if plan else None,
            ranges=measured,
            samples=samples,
            batch_size=batch_size,
            min_sqnr=min_sqnr,
            max_drop=parse_percent(max_drop, "--max-drop") if max_drop else None,
            min_speedup=min_speedup,
            after_each=hooks,
            progress=progress,
        )
    name = "stdin" if piped_in else model.name
    html = _render_report(original, result, dataset, samples, batch_size, name) if original else None
    if piped_out:
        save_stream(result.model, sys.stdout.buffer, "-o -")
    else:
        save(result.model, output)
    if plan_out:
        write_text(plan_out, result.plan.to_json(), "--plan-out")
    if report and html:
        write_text(report, html, "--report")
    if as_json:
        print_json(rewritten.as_json(result.report, output))
    else:
        rewritten.print_table(result.report, "stdout" if piped_out else str(output), stderr=piped_out)


def _named_after(stages: list[str], progress: ProgressBar) -> AfterEach:
    """What lets the bar have the name of the pass that is running.

    Args:
        stages: names of passes in the order they run; others may run between them.
        progress: the bar.
    """
    pending = list(stages)

    def after_each(position: int, step: Pass, graph: gs.Graph) -> None:
        if step.pass_name() in pending:
            pending.remove(step.pass_name())
        if pending:
            progress.begin(pending[0])

    return after_each


def _check_pipes(piped_in: bool, output: Path | None, as_json: bool) -> None:
    """Refuse what pipes can't do, before any work."""
    from onnxquant.errors import OnnxquantError

    if piped_in and sys.stdin.isatty():
        raise OnnxquantError("MODEL -: stdin is a terminal; pipe a model in, or give its path")
    if piped_in and output is None:
        raise OnnxquantError("-o: needed where the model comes from stdin; give a path, or - for stdout")
    if output == PIPE and as_json:
        raise OnnxquantError("--json: stdout carries the model; give -o a path")
    if output == PIPE and sys.stdout.isatty():
        raise OnnxquantError("-o -: stdout is a terminal; pipe it on, or give a path")


def _render_report(
    original: onnx.ModelProto,
    result: RewriteResult,
    dataset: Dataset | None,
    samples: int,
    batch_size: int,
    name: str,
) -> str:
    """Measured on the samples that the agreement was: those held back, or all where there are too few."""
    from onnxquant.calibration.dataset import split_held
    from onnxquant.cli.options import progress_bar
    from onnxquant.report import render_report

    data = dataset
    if dataset is not None and result.report.judgement and result.report.judgement.held_back:
        data = split_held(dataset, samples)[1]
    with progress_bar("measuring for the report") as progress:
        return render_report(original, result, data, name=name, batch_size=batch_size, progress=progress)
