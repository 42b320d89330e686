"""`onnxquant build`: an ONNX file becomes a TensorRT engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onnxquant.cli.options import Json, ModelPath

if TYPE_CHECKING:
    from onnxquant.deploy.build import Engine
    from onnxquant.measure.bench import Timing

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def build_command(
    model: ModelPath,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", show_default="MODEL.plan beside the input", help="File to write: .plan, .engine or .trt."
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.6",
            show_default="TensorRT-RTX: 8.0 and later, TensorRT: the GPU here",
            help="GPU to build for; repeatable.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:OPT:MAX", show_default="1:1:8", help="Batch sizes, where the first axis is dynamic; or one."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=MIN:OPT:MAX",
            help="Shapes such as 1x3x224x224 of an input that has more dynamic axes, or one; repeatable.",
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File with the tactics timed before, read and written; TensorRT only.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="1G", help="GPU memory for intermediate results of a layer, at most.")
    ] = None,
    runtime: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None,
        typer.Option(show_default="the first that is installed", help="Which TensorRT builds, and runs the engine."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine; where there is a GPU to run it on, time it."""
    from onnxquant.cli.options import check_outputs, progress_bar
    from onnxquant.deploy.build import build_engine
    from onnxquant.errors import OnnxquantError
    from onnxquant.files import write_bytes
    from onnxquant.measure.engines import SUFFIXES, is_engine

    output = output or model.with_suffix(".plan")
    check_outputs({"-o": output, "--timing-cache": timing_cache}, {"the model": model})
    if not is_engine(output):
        raise OnnxquantError(f"-o {output}: must end in {', '.join(sorted(SUFFIXES))}, as TensorRT engines do")
    with progress_bar("building") as progress:
        engine = build_engine(
            model,
            compute_capabilities=compute_capability or (),
            batch=None if batch is None else _parse_batch(batch),
            shapes=dict(map(_parse_shapes, shape or ())),
            timing_cache=timing_cache,
            workspace=None if workspace is None else _parse_bytes(workspace),
            runtime=runtime,
            progress=progress,
        )
    write_bytes(output, engine.plan, "-o")
    timing = _run(engine, output)
    if as_json:
        _print_json(engine, output, timing)
    else:
        _print_table(engine, output, timing)


def _parse_batch(text: str) -> tuple[int, int, int]:
    from onnxquant.errors import OnnxquantError
    from onnxquant.shapes import parse_sizes

    sizes = parse_sizes(text, ":") or []
    if len(sizes) not in (1, 3):
        raise OnnxquantError(f"--batch {text}: must be MIN:OPT:MAX, for example 1:4:8, or one size")
    return sizes[0], sizes[len(sizes) // 2], sizes[-1]


def _parse_shapes(text: str) -> tuple[str, list[list[int]]]:
    from onnxquant.errors import OnnxquantError
    from onnxquant.shapes import parse_sizes

    name, _, given = text.rpartition("=")
    shapes = [shape for part in given.split(":") if (shape := parse_sizes(part, "x"))]
    if not name or len(shapes) != given.count(":") + 1 or len(shapes) not in (1, 3):
        raise OnnxquantError(
            f"--shape {text}: must be INPUT=MIN:OPT:MAX, for example image=1x3x224x224:4x3x224x224:8x3x224x224, or "
            "INPUT=SHAPE"
        )
    return name, [shapes[0], shapes[len(shapes) // 2], shapes[-1]]


def _parse_bytes(text: str) -> int:
    from onnxquant.errors import OnnxquantError

    match = re.fullmatch(r"([1-9]\d*)([KMG]?)", text.upper())
    if not match:
        raise OnnxquantError(f"--workspace {text}: must be bytes, with K, M or G behind, for example 1G")
    return int(match[1]) * _UNITS[match[2]]


def _run(engine: Engine, path: Path) -> Timing | str:
    """Time the engine on the shapes that it was optimized for, or say why it can't be run."""
    from onnxquant.cli.options import progress_bar
    from onnxquant.deploy.tensorrt import gpu_compute_capability
    from onnxquant.errors import OnnxquantError
    from onnxquant.measure.bench import bench
    from onnxquant.measure.engines import engine_inputs
    from onnxquant.measure.feeds import random_feed

    present = gpu_compute_capability()
    if present is None:
        return "there is no GPU here"
    if engine.compute_capabilities and present not in engine.compute_capabilities:
        return f"the GPU here has compute capability {present}"
    try:
        inputs = engine_inputs(path)
        feed = random_feed([entry.spec for entry in inputs], str(path), shapes={e.spec.name: e.best for e in inputs})
        with progress_bar("running") as progress:
            return bench([path], [feed], progress=progress)[0]
    except OnnxquantError as error:  # the engine is built and written all the same
        return str(error)


def _gpus(engine: Engine) -> str:
    if engine.compute_capabilities:
        return f"compute capability {', '.join(engine.compute_capabilities)}"
    return "compute capability 8.0 and later" if "RTX" in engine.runtime else "the one here"


def _print_json(engine: Engine, output: Path, timing: Timing | str) -> None:
    from onnxquant.cli.options import print_json

    measured = None if isinstance(timing, str) else timing
    print_json(
        {
            "output": str(output),
            "runtime": engine.runtime,
            "compute_capabilities": engine.compute_capabilities,
            "profile": engine.profile,
            "parse_seconds": engine.parse_seconds,
            "build_seconds": engine.build_seconds,
            "engine_bytes": len(engine.plan),
            "onnx_weight_bytes": engine.weight_bytes,
            "warnings": engine.warnings,
            "load_ms": measured and measured.load_seconds * 1e3,
            "median_ms": measured and measured.percentile(50) * 1e3,
            "batch": measured and measured.batch,
            "not_run": None if measured else timing,
        }
    )


def _print_table(engine: Engine, output: Path, timing: Timing | str) -> None:
    from rich.table import Table

    from onnxquant.cli.options import open_console, shown

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("runtime", engine.runtime)
    table.add_row("GPUs", _gpus(engine))
    for name, shapes in engine.profile.items():
        least, best, most = ("x".join(map(str, sizes)) for sizes in shapes)
        table.add_row(f"input {shown(name)}", f"{least} to {most}, optimized for {best}")
    table.add_row("parse", f"{engine.parse_seconds:.2f} s")
    table.add_row("build", f"{engine.build_seconds:.2f} s")
    table.add_row("size", f"{len(engine.plan):,} bytes, from {engine.weight_bytes:,} bytes of weights in the ONNX file")
    if engine.warnings:
        table.add_row("warnings", f"{len(engine.warnings)} from TensorRT; --json lists them")
    if isinstance(timing, str):
        table.add_row("not run", shown(timing))
    else:
        table.add_row("load", f"{timing.load_seconds * 1e3:.0f} ms")
        spread = f"{timing.percentile(10) * 1e3:.3f} to {timing.percentile(90) * 1e3:.3f}"
        table.add_row("run", f"{timing.percentile(50) * 1e3:.3f} ms ({spread}), batch {timing.batch}")
    table.add_row("written", shown(str(output)))
    open_console().print(table)
