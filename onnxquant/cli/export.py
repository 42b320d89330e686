"""`onnxquant export`: a timm model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def _print_zoo(wanted: bool) -> None:
    if not wanted:
        return
    from rich.table import Table

    from onnxquant.cli.options import open_console
    from onnxquant.zoo import load_zoo

    table = Table("name", "timm", "in papers", "input", "attention", "bridges", box=None, pad_edge=False)
    for name, model in load_zoo().items():
        table.add_row(
            name,
            model.timm or "-",
            ", ".join(model.papers) or "-",
            "x".join(map(str, model.preprocessing.input_size)),
            f"{model.attention} {model.variant}" if model.attention else "-",
            str(len(model.bridges) or "-"),
        )
    open_console().print(table)
    raise typer.Exit


def export_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Model, by its name in the zoo (see --list) or in timm.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file to write.", show_default=False)],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights, classes and size, as tools/train.py saves them; for a model that timm hasn't: its ONNX file."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random weights from this seed.")] = None,
    exporter: Annotated[Literal["torchscript", "dynamo"], typer.Option(help="Exporter of torch.")] = "torchscript",
    batch: Annotated[str, typer.Option(metavar="dynamic|N", help="Batch size.")] = "dynamic",
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Keep exports in $XDG_CACHE_HOME/onnxquant (~/.cache/onnxquant), and take them from there.",
        ),
    ] = True,
    show_zoo: Annotated[
        bool, typer.Option("--list", callback=_print_zoo, is_eager=True, help="List the models of the zoo.")
    ] = False,
) -> None:
    """Export a model to ONNX: pretrained, from a checkpoint, or with seeded random weights."""
    from onnxquant.export import default_cache, export
    from onnxquant.zoo import load_zoo

    path = export(
        name,
        output,
        checkpoint=checkpoint,
        exporter=exporter,
        batch="dynamic" if batch == "dynamic" else _count(batch),
        seed=seed,
        cache=default_cache() if cache else None,
    )
    row = load_zoo().get(name)
    how = "as given" if row and row.timm is None else f"{exporter}, batch {batch}"
    typer.echo(f"{path}: {name}, {how}, {path.stat().st_size / 1e6:.1f} MB")


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither 'dynamic' nor a number", param_hint="--batch") from None
