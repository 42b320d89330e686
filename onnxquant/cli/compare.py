"""`onnxquant compare`: how far a rewritten model's results are from the original's, and where they part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxquant.cli.options import BatchSize, Data, Json, Limit, PerClass, Preprocess

if TYPE_CHECKING:
    from onnxquant.calibration.dataset import Dataset
    from onnxquant.measure.compare import Comparison


def compare_command(
    original: Annotated[Path, typer.Argument(help="The reference, an ONNX file.", show_default=False)],
    rewritten: Annotated[
        Path,
        typer.Argument(
            help="What to judge: an ONNX file, or outputs that polygraphy run --save-outputs wrote of a run on DATA; "
            "outputs.json:trt takes those of the runner with trt in its name.",
            show_default=False,
        ),
    ],
    data: Data,
    top: Annotated[int, typer.Option(min=0, help="Layers to show, worst first; 0 compares the outputs only.")] = 20,
    batch_size: BatchSize = 32,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    limit: Limit = None,
    polygraphy_json: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write inputs.json and outputs.json there too, for polygraphy run --load-inputs and --load-outputs.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two models in ONNX Runtime, output by output and layer by layer."""
    from onnxquant.cli.options import open_data, print_json, progress_bar
    from onnxquant.measure.compare import compare, compare_saved
    from onnxquant.polygraphy.results import load_outputs, split_runner

    dataset = open_data(data, original, per_class, preprocess, limit)
    source = split_runner(rewritten)
    saved = load_outputs(*source) if source else None
    if polygraphy_json:
        _prepare(
            polygraphy_json, {"--data": data, "REWRITTEN": source[0] if source else rewritten, "ORIGINAL": original}
        )
    with progress_bar("comparing") as progress:
        if saved:
            comparison = compare_saved(original, saved, dataset, top > 0, progress)
        else:
            comparison = compare(original, rewritten, dataset, batch_size, top > 0, progress)
    if polygraphy_json:
        _save_run(polygraphy_json, [original] if saved else [original, rewritten], dataset)
    if not as_json:
        _print_tables(comparison, len(dataset), top)
        return
    outputs = {name: agreement.as_dict() for name, agreement in comparison.outputs.items()}
    layers = [layer._asdict() for layer in comparison.layers[:top]]
    print_json({"samples": len(dataset), "outputs": outputs, "layers": layers})


def _prepare(folder: Path, inputs: dict[str, str | Path]) -> None:
    """Make the folder, and make sure that nothing in it is an input."""
    from onnxquant.cli.options import check_outputs
    from onnxquant.errors import OnnxquantError
    from onnxquant.polygraphy.results import INPUTS, OUTPUTS

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OnnxquantError(f"--polygraphy-json {folder}: can't be made ({error.strerror})") from None
    for name in (INPUTS, OUTPUTS):
        check_outputs({"--polygraphy-json": folder / name}, inputs)


def _save_run(folder: Path, models: list[Path], dataset: Dataset) -> None:
    from onnxquant.calibration.dataset import input_specs
    from onnxquant.cli.options import progress_bar
    from onnxquant.graph.model import read_proto
    from onnxquant.measure.sessions import Runner
    from onnxquant.polygraphy.results import save_run

    specs = [spec for model in models for spec in input_specs(read_proto(model))]
    with progress_bar("saving") as progress:
        save_run(folder, [Runner(model, str(model)) for model in models], dataset, specs, progress)


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
