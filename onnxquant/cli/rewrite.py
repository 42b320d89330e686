"""`onnxquant rewrite`: the main verb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxquant.cli.options import BatchSize, Json, ModelPath, PerClass, Preprocess

if TYPE_CHECKING:
    from onnxquant.pass_manager import AfterEach
    from onnxquant.pipeline import Report, RewriteResult


def rewrite_command(
    model: ModelPath,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write [default: MODEL.q.onnx beside the input].")
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(help="Calibration data: image folder or zip, .npz, .npy, polygraphy JSON or load_data() script."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe name, or path of a recipe's .toml file.")] = "efficientquant",
    target: Annotated[str, typer.Option(help="Runtime the result is for.")] = "onnxruntime",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Change an option of a pass.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to calibrate on, at most.")] = 32,
    batch_size: BatchSize = 32,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    min_sqnr: Annotated[
        float, typer.Option(help="Least agreement with the original, in dB; below it nothing is written.")
    ] = 10.0,
    plan: Annotated[Path | None, typer.Option(help="Apply this plan instead of deciding.")] = None,
    plan_out: Annotated[Path | None, typer.Option(help="Write the plan, as JSON.")] = None,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Check the graph and its outputs after every pass.")
    ] = False,
    dump_dir: Annotated[Path | None, typer.Option(help="Write the graph after every pass to this folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Allow OUTPUT to be the input itself.")] = False,
    as_json: Json = False,
) -> None:
    """Quantize a model: ONNX in, ONNX out."""
    from onnxquant.cli.options import open_data, progress_bar
    from onnxquant.errors import OnnxquantError
    from onnxquant.graph.model import load, save
    from onnxquant.pipeline import rewrite, save_plan
    from onnxquant.plan import QuantizationPlan

    output = output or model.with_suffix(".q.onnx")
    if output.exists() and model.exists() and output.samefile(model) and not overwrite:
        raise OnnxquantError(f"{output}: is the input itself; give another path with -o, or --overwrite")
    if output.is_dir() or not output.parent.is_dir():
        raise OnnxquantError(
            f"{output}: can't be written (not a file in an existing folder); give another path with -o"
        )
    loaded = load(model)
    dataset = open_data(calib, loaded, per_class, preprocess, option="--calib") if calib else None
    hooks: list[AfterEach] = []
    if dump_dir:
        from onnxquant.verify import DumpEach

        hooks.append(DumpEach(loaded, dump_dir))
    if verify_each:
        from onnxquant.verify import VerifyEach

        if dataset is None:
            raise OnnxquantError("--verify-each: needs data to run; give some with --calib")
        hooks.append(VerifyEach(loaded, dataset, lambda line: typer.echo(line, err=True)))
    with progress_bar("calibrating") as progress:
        result = rewrite(
            loaded,
            recipe=recipe,
            calibration=dataset,
            target=target,
            overrides=overrides or (),
            plan=QuantizationPlan.from_json(plan) if plan else None,
            samples=samples,
            batch_size=batch_size,
            min_sqnr=min_sqnr,
            after_each=hooks,
            progress=progress,
        )
    if plan_out:
        save_plan(result.plan, plan_out)
    save(result.model, output)
    if as_json:
        _print_json(result, output)
    else:
        _print_table(result.report, output)


def _print_json(result: RewriteResult, output: Path) -> None:
    from onnxquant.cli.options import print_json

    report = result.report
    document = {
        "output": str(output),
        "blocks": report.blocks,
        "quantized": report.quantized,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "agreement": None
        if report.agreement is None
        else {name: agreement.as_dict() for name, agreement in report.agreement.items()},
        "samples": report.held_samples,
        "held_back": report.held_back,
        "passes": [
            {"name": run.name, "seconds": round(run.seconds, 4), "notes": list(run.result.notes)} for run in report.runs
        ],
        "seconds": round(report.seconds, 4),
    }
    print_json(document)


def _print_table(report: Report, output: Path) -> None:
    from rich.table import Table

    from onnxquant.cli.options import open_console, shown

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    if report.blocks:
        table.add_row("blocks", ", ".join(f"{count} {kind}" for kind, count in report.blocks.items()))
    for label, count in report.quantized.items():
        table.add_row("quantized", f"{count} x {label}")
    saved = report.bytes_before / max(report.bytes_after, 1)
    table.add_row("size", f"{report.bytes_before:,} -> {report.bytes_after:,} bytes ({saved:.1f}x smaller)")
    for name, agreement in (report.agreement or {}).items():
        top1 = agreement.top1_agreement
        same = "" if top1 is None else f", top-1 agreement {top1:.1%}"
        kind = "held-back samples" if report.held_back else "samples, which calibration saw too"
        table.add_row(
            f"output {shown(name)}",
            f"SQNR {agreement.sqnr_db:.1f} dB, cosine {agreement.cosine:.5f}{same} on {report.held_samples} {kind}",
        )
    if report.agreement is None:
        table.add_row("output", "agreement not measured: no data (give some with --calib)")
    for run in report.runs:
        table.add_row("pass", f"{run.seconds * 1e3:7.0f} ms  {run.name}: {shown('; '.join(run.result.notes))}")
    table.add_row("written", f"{shown(str(output))} in {report.seconds:.1f} s")
    open_console().print(table)
