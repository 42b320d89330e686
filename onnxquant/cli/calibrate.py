"""`onnxquant calibrate`: measure ranges once, to rewrite a model with them as often as wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxquant.cli.options import BatchSize, Json, ModelPath, PerClass, Preprocess
from onnxquant.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECIPE, DEFAULT_SAMPLES, DEFAULT_TARGET

if TYPE_CHECKING:
    from onnxquant.calibration.observers import MinMax
    from onnxquant.calibration.ranges import Ranges

WIDEST_SHOWN = 5


def calibrate_command(
    model: ModelPath,
    calib: Annotated[
        str,
        typer.Option(
            help="Calibration data: image folder or zip, .npz, .npy, polygraphy JSON or load_data() script.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", show_default="MODEL.ranges.json beside the input", help="File of ranges to write."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe to measure for: its name, or path of its .toml file.")] = (
        DEFAULT_RECIPE
    ),
    target: Annotated[str, typer.Option(help="Runtime to rewrite for.")] = DEFAULT_TARGET,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[PASS.]OPTION=VALUE", help="Change an option of passes."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to calibrate on, at most.")] = DEFAULT_SAMPLES,
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    tensorrt_cache: Annotated[
        Path | None,
        typer.Option(help="Also write a calibration cache for TensorRT's implicit quantization (8.6 to 10)."),
    ] = None,
    tensorrt_version: Annotated[
        str | None,
        typer.Option(show_default="the one installed", help="TensorRT that is to read the cache; e.g. 8.6.1."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the ranges of a model's tensors, for `onnxquant rewrite --ranges`."""
    import time

    from onnxquant.calibration.dataset import split_held
    from onnxquant.cli.options import check_outputs, open_data, print_json, progress_bar
    from onnxquant.errors import OnnxquantError
    from onnxquant.files import write_text
    from onnxquant.graph.model import load
    from onnxquant.observation import calibrate

    start = time.perf_counter()
    loaded = load(model)
    output = output or model.with_suffix(".ranges.json")
    outputs = {"-o": output, "--tensorrt-cache": tensorrt_cache}
    check_outputs(outputs, {"MODEL": model, "--calib": calib, "--recipe": recipe})
    if tensorrt_version and not tensorrt_cache:
        raise OnnxquantError("--tensorrt-version: is for a cache; give its path with --tensorrt-cache")
    version = _cache_version(tensorrt_version) if tensorrt_cache else None
    dataset = open_data(calib, loaded, per_class, preprocess, option="--calib")
    with progress_bar("calibrating") as progress:
        ranges = calibrate(
            loaded,
            dataset,
            recipe=recipe,
            target=target,
            overrides=overrides or (),
            samples=samples,
            batch_size=batch_size,
            progress=progress,
        )
    write_text(output, ranges.to_json(), "-o")
    if tensorrt_cache and version:
        from onnxquant.deploy.calibrator import write_cache

        write_text(tensorrt_cache, write_cache(ranges, version), "--tensorrt-cache")
    seconds = time.perf_counter() - start
    widest = _widest(ranges)
    if as_json:
        document = {
            "output": str(output),
            "tensorrt_cache": None if tensorrt_cache is None else str(tensorrt_cache),
            "recipe": recipe,
            "tensors": len(ranges.tensors),
            "samples": ranges.samples,
            "widest": [{"tensor": tensor, "minimum": seen.minimum, "maximum": seen.maximum} for tensor, seen in widest],
            "seconds": seconds,
        }
        print_json(document)
    else:
        held = len(split_held(dataset, ranges.samples)[1])
        _print_table(ranges, widest, [path for path in (output, tensorrt_cache) if path], calib, held, seconds)


def _cache_version(given: str | None) -> str:
    """The version to write into the cache, once it is known to have calibrators."""
    from onnxquant.deploy.calibrator import cache_header
    from onnxquant.deploy.tensorrt import find_tensorrt
    from onnxquant.errors import OnnxquantError

    if given is None:
        try:
            given = find_tensorrt("tensorrt").version
        except OnnxquantError:
            raise OnnxquantError(
                "--tensorrt-cache: TensorRT is not installed here; name the one that is to read the cache with "
                "--tensorrt-version, for example 10.3.0"
            ) from None
    cache_header(given)
    return given


def _widest(ranges: Ranges) -> list[tuple[str, MinMax]]:
    from onnxquant.calibration.observers import MinMax

    seen = ((tensor, ranges.observed(tensor, MinMax)) for tensor in ranges.tensors)
    known = [(tensor, observer) for tensor, observer in seen if observer]
    return sorted(known, key=lambda pair: pair[1].minimum - pair[1].maximum)[:WIDEST_SHOWN]


def _print_table(
    ranges: Ranges, widest: list[tuple[str, MinMax]], written: list[Path], data: str, held: int, seconds: float
) -> None:
    from rich.table import Table

    from onnxquant.cli.options import open_console, shown

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("data", f"{shown(data)}, {ranges.samples} samples; {held} more held back for rewrite to measure on")
    table.add_row("tensors", f"{len(ranges.tensors)} observed, for recipe {shown(ranges.recipe)}")
    for position, (tensor, seen) in enumerate(widest):
        title = "" if position else "widest"
        table.add_row(title, f"{seen.minimum:.4g} to {seen.maximum:.4g}  {shown(tensor)}")
    for path in written:
        table.add_row("written", shown(str(path)))
    table.add_row("time", f"{seconds:.1f} s")
    open_console().print(table)
