"""`onnxquant report`: the HTML report of a rewrite made earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxquant.cli.options import BatchSize, Limit, PerClass, Preprocess
from onnxquant.defaults import DEFAULT_BATCH_SIZE


def report_command(
    original: Annotated[Path, typer.Argument(help="The model before the rewrite, an ONNX file.", show_default=False)],
    rewritten: Annotated[Path, typer.Argument(help="The rewritten model, an ONNX file.", show_default=False)],
    plan: Annotated[Path, typer.Option(help="The plan it was made by, from --plan-out.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", show_default="REWRITTEN, ending in .html", help="File to write."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Samples to measure on, best not those it was calibrated on: image folder or zip, .npz, .npy, "
            "polygraphy JSON or load_data() script. Without any the page shows what the files hold."
        ),
    ] = None,
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    limit: Limit = None,
) -> None:
    """Write one HTML page about a rewrite: blocks, distributions, agreement by layer, and the plan."""
    from onnxquant.cli.options import check_outputs, open_data, progress_bar
    from onnxquant.files import write_text
    from onnxquant.graph.model import load, read_proto
    from onnxquant.pipeline import Report, RewriteResult
    from onnxquant.plan import QuantizationPlan
    from onnxquant.report import check_report, render_report

    output = output or rewritten.with_suffix(".html")
    check_outputs({"-o": output}, {"ORIGINAL": original, "REWRITTEN": rewritten, "--plan": plan, "--data": data})
    check_report(output, "-o")
    model, after, decided = load(original), read_proto(rewritten), QuantizationPlan.from_json(plan)
    dataset = open_data(data, model, per_class, preprocess, limit) if data else None
    report = Report(bytes_before=model.size_bytes, bytes_after=after.ByteSize())
    result = RewriteResult(after, decided, report)
    with progress_bar("measuring") as progress:
        html = render_report(
            model.to_proto(), result, dataset, name=original.name, batch_size=batch_size, progress=progress
        )
    write_text(output, html, "-o")
    typer.echo(f"report  {output}, {len(html.encode()):,} bytes")
