"""`onnxquant compare`: how far a rewritten model's results are from the original's, and where they part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxquant.cli.options import BatchSize, Data, Json, Limit, PerClass, Preprocess

if TYPE_CHECKING:
    from onnxquant.measure.compare import Comparison


def compare_command(
    original: Annotated[Path, typer.Argument(help="The reference, an ONNX file.", show_default=False)],
    rewritten: Annotated[Path, typer.Argument(help="The model to judge, an ONNX file.", show_default=False)],
    data: Data,
    top: Annotated[int, typer.Option(min=0, help="Layers to show, worst first; 0 compares the outputs only.")] = 20,
    batch_size: BatchSize = 32,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Compare two models in ONNX Runtime, output by output and layer by layer."""
    from onnxquant.cli.options import open_data, print_json, progress_bar
    from onnxquant.measure.compare import compare

    dataset = open_data(data, original, per_class, preprocess, limit)
    with progress_bar("comparing") as progress:
        comparison = compare(original, rewritten, dataset, batch_size, per_layer=top > 0, progress=progress)
    if not as_json:
        _print_tables(comparison, len(dataset), top)
        return
    outputs = {name: agreement.as_dict() for name, agreement in comparison.outputs.items()}
    layers = [layer._asdict() for layer in comparison.layers[:top]]
    print_json({"samples": len(dataset), "outputs": outputs, "layers": layers})


def _print_tables(comparison: Comparison, samples: int, top: int) -> None:
    from rich.table import Table

    from onnxquant.cli.options import open_console, shown

    console = open_console()
    outputs = Table(box=None, pad_edge=False)
    outputs.add_column("output", overflow="fold")
    for column in ("SQNR dB", "cosine", "top-1 agreement"):
        outputs.add_column(column, justify="right")
    for name, metrics in comparison.outputs.items():
        agreement = "-" if metrics.top1_agreement is None else f"{metrics.top1_agreement:.2%}"
        outputs.add_row(shown(name), f"{metrics.sqnr_db:.2f}", f"{metrics.cosine:.6f}", agreement)
    console.print(f"{samples} samples")
    console.print(outputs)
    if not comparison.layers:
        return
    layers = Table(box=None, pad_edge=False)
    layers.add_column("layer", overflow="fold")
    layers.add_column("op")
    layers.add_column("SQNR dB", justify="right")
    for layer in comparison.layers[:top]:
        layers.add_row(shown(layer.tensor), shown(layer.op), f"{layer.sqnr_db:.2f}")
    console.print(f"\nworst {min(top, len(comparison.layers))} of {len(comparison.layers)} layers that both compute")
    console.print(layers)
