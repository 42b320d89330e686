"""`onnxquant evaluate`: how many images a classifier gets right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxquant.cli.options import BatchSize, Data, Json, Limit, ModelPath, PerClass, Preprocess


def evaluate_command(
    model: ModelPath,
    data: Data,
    batch_size: BatchSize = 32,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    limit: Limit = None,
    reference: Annotated[
        Path | None, typer.Option(help="ONNX file to count agreement with: how often both prefer the same class.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Keep the counts in this file, and go on from it after an interruption.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the top-1 and top-5 accuracy of a classifier in ONNX Runtime."""
    from onnxquant.cli.options import open_console, open_data, print_json, progress_bar, shown
    from onnxquant.measure.accuracy import evaluate

    dataset = open_data(data, model, per_class, preprocess, limit)
    with progress_bar("evaluating") as progress:
        accuracy = evaluate(model, dataset, batch_size, progress, reference=reference, resume=resume)
    low, high = accuracy.interval
    if as_json:
        print_json(
            {
                "model": str(model),
                "data": data,
                "top1": accuracy.top1,
                "top1_interval": [low, high],
                "top5": accuracy.top5,
                "agreement": accuracy.agreement,
                "samples": accuracy.samples,
                "seconds": accuracy.seconds,
            }
        )
        return

    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("model", shown(str(model)))
    table.add_row("data", f"{shown(data)}, {accuracy.samples} samples in {accuracy.seconds:.1f} s")
    table.add_row("top-1", f"{accuracy.top1:.2%} (95 % interval {low:.2%} to {high:.2%})")
    table.add_row("top-5", f"{accuracy.top5:.2%}")
    if accuracy.agreement is not None:
        table.add_row("agreement", f"{accuracy.agreement:.2%} with {shown(str(reference))}")
    open_console().print(table)
