"""`onnxquant export`: a timm model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Model of timm, e.g. mobilevit_xxs.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file to write.", show_default=False)],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights, classes and size, as tools/train.py saves them.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random weights from this seed.")] = None,
    exporter: Annotated[Literal["torchscript", "dynamo"], typer.Option(help="Exporter of torch.")] = "torchscript",
    batch: Annotated[str, typer.Option(metavar="dynamic|N", help="Batch size.")] = "dynamic",
) -> None:
    """Export a timm model to ONNX: pretrained, from a checkpoint, or with seeded random weights."""
    from onnxquant.export import export

    path = export(
        name,
        output,
        checkpoint=checkpoint,
        exporter=exporter,
        batch="dynamic" if batch == "dynamic" else _count(batch),
        seed=seed,
    )
    typer.echo(f"{path}: {name}, {exporter}, batch {batch}, {path.stat().st_size / 1e6:.1f} MB")


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither 'dynamic' nor a number", param_hint="--batch") from None
