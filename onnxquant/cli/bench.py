"""`onnxquant bench`: how fast models are, against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onnxquant.cli.options import Json, Preprocess

if TYPE_CHECKING:
    from onnxquant.calibration.samples import Feed
    from onnxquant.measure.bench import Timing


def bench_command(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="ONNX files and TensorRT engines (.engine, .plan, .trt); ratios are to the first.",
            show_default=False,
        ),
    ],
    runs: Annotated[
        int, typer.Option(min=1, help="Timed turns of each model; quick ones run several times in each.")
    ] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them that don't count.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one run, where the batch axis is dynamic.")] = 1,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=1x3x224x224", help="Shape of an input that has more dynamic axes; repeatable."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            show_default="random values",
            help="Run on the first samples of: image folder or zip, .npz, .npy, polygraphy JSON or load_data() script.",
        ),
    ] = None,
    preprocess: Preprocess = None,
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt"], typer.Option(help="Execution provider of ONNX Runtime, for ONNX files.")
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, show_default="all cores", help="Threads of one operator.")
    ] = None,
    session_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Session configuration, e.g. session.disable_quant_qdq=1; repeatable."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that loading or a turn of a model may take.")] = 600,
    as_json: Json = False,
) -> None:
    """Time models: a process for each, one at a time, taking turns.

    An engine's inputs and outputs stay on the GPU while it is timed; ONNX Runtime copies them in every run.
    """
    from onnxquant.cli.options import print_json, progress_bar
    from onnxquant.errors import OnnxquantError
    from onnxquant.measure.bench import bench, require_provider
    from onnxquant.measure.engines import is_engine

    if data and shape:
        raise OnnxquantError("--shape: is for random inputs; leave it out, or --data")
    if preprocess and not data:
        raise OnnxquantError("--preprocess: needs data; give some with --data")
    if all(map(is_engine, models)) and (threads or session_option or provider != "cpu"):
        option = "--threads" if threads else "--session-option" if session_option else "--provider"
        raise OnnxquantError(f"{option}: is for ONNX files, and there are only engines; leave it out")
    require_provider(provider)
    shapes = dict(map(_parse_shape, shape or ()))
    entries = dict(map(_parse_entry, session_option or ()))
    feeds: list[Feed] = []
    inputs: set[str] = set()
    for path in models:
        if is_engine(path):
            feeds.append(_engine_feed(path, batch, shapes, data, preprocess, timeout))
        else:
            feeds.append(_model_feed(path, batch, shapes, data, preprocess))
        inputs.update(feeds[-1])
    if unknown := sorted(shapes.keys() - inputs):
        raise OnnxquantError(f"--shape {unknown[0]}: no model has this input, only {', '.join(sorted(inputs))}")
    with progress_bar("benchmarking") as progress:
        timings = bench(
            models,
            feeds,
            rounds=runs,
            warmup=warmup,
            threads=threads,
            provider=provider,
            session_options=entries,
            timeout=timeout,
            progress=progress,
        )
    if as_json:
        print_json({"provider": provider, "runs": runs, "threads": threads, "models": list(map(_document, timings))})
    else:
        _print_table(timings, provider)


def _model_feed(path: Path, batch: int, shapes: dict[str, list[int]], data: str | None, preprocess: str | None) -> Feed:
    from onnxquant.calibration.dataset import input_specs
    from onnxquant.cli.options import open_data
    from onnxquant.graph.model import read_proto
    from onnxquant.measure.feeds import data_feed, random_feed
    from onnxquant.shapes import image_shape

    proto = read_proto(path)
    specs = input_specs(proto)
    if data:
        return data_feed(open_data(data, path, preprocess=preprocess), specs, batch)
    return random_feed(specs, str(path), batch, shapes, image_shape(proto, str(path)))


def _engine_feed(
    path: Path, batch: int, shapes: dict[str, list[int]], data: str | None, preprocess: str | None, timeout: float
) -> Feed:
    from onnxquant.calibration.dataset import open_dataset
    from onnxquant.measure.engines import engine_inputs, require_in_profile
    from onnxquant.measure.feeds import data_feed, random_feed
    from onnxquant.preprocessing import parse_preprocessing

    inputs = engine_inputs(path, timeout)
    specs = [entry.spec_for(shapes) for entry in inputs]
    if data:
        preprocessing = parse_preprocessing(preprocess, specs) if preprocess else None  # an engine has no metadata
        feed = data_feed(open_dataset(data, specs, preprocessing), specs, batch)
    else:
        feed = random_feed(specs, str(path), batch, shapes)
    require_in_profile(path, inputs, feed)
    return feed


def _parse_shape(text: str) -> tuple[str, list[int]]:
    from onnxquant.errors import OnnxquantError
    from onnxquant.shapes import parse_sizes

    name, _, sizes = text.rpartition("=")
    shape = parse_sizes(sizes, "x")
    if not name or not shape:
        raise OnnxquantError(f"--shape {text}: must be INPUT=SIZExSIZE..., for example image=1x3x224x224")
    return name, shape


def _parse_entry(text: str) -> tuple[str, str]:
    from onnxquant.errors import OnnxquantError

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise OnnxquantError(f"--session-option {text}: must be KEY=VALUE, for example session.disable_quant_qdq=1")
    return key, value


def _document(timing: Timing) -> dict[str, Any]:
    return {
        "model": timing.model,
        "runtime": timing.runtime,
        "median_ms": timing.percentile(50) * 1e3,
        "min_ms": min(timing.seconds) * 1e3,
        "p10_ms": timing.percentile(10) * 1e3,
        "p90_ms": timing.percentile(90) * 1e3,
        "ratio": timing.ratio,
        "ratio_interval": timing.ratio_interval,
        "batch": timing.batch,
        "samples_per_second": timing.samples_per_second,
        "load_ms": timing.load_seconds * 1e3,
        "memory_bytes": timing.memory_bytes,
        "gpu_bytes": timing.gpu_bytes,
        "file_bytes": timing.file_bytes,
        "weight_bytes": timing.weight_bytes,
        "rounds_ms": [seconds * 1e3 for seconds in timing.rounds],
    }


def _print_table(timings: list[Timing], provider: str) -> None:
    from rich.table import Table

    from onnxquant.cli.options import open_console, shown

    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    on_gpu = any(timing.gpu_bytes is not None for timing in timings)
    titles = ["median ms", "min", "p10-p90", "ratio", "samples/s", "load ms", "memory MB"]
    for title in [*titles, *(["GPU MB"] if on_gpu else []), "file MB", "weights MB"]:
        table.add_column(title, justify="right")
    for timing in timings:
        document, (low, high) = _document(timing), timing.ratio_interval
        table.add_row(
            shown(timing.model),
            f"{document['median_ms']:.3f}",
            f"{document['min_ms']:.3f}",
            f"{document['p10_ms']:.3f}-{document['p90_ms']:.3f}",
            f"{timing.ratio:.3f}" + (f" ({low:.3f}-{high:.3f})" if low < high else ""),
            f"{timing.samples_per_second:.1f}",
            f"{document['load_ms']:.0f}",
            _megabytes(timing.memory_bytes),
            *([_megabytes(timing.gpu_bytes)] if on_gpu else []),
            _megabytes(timing.file_bytes),
            _megabytes(timing.weight_bytes),
        )
    batch = "/".join(str(size) for size in dict.fromkeys(timing.batch for timing in timings))
    console = open_console()
    runtimes = dict.fromkeys(provider if t.runtime == "ONNX Runtime" else t.runtime for t in timings)
    console.print(
        f"{len(timings[0].rounds)} rounds on {' and '.join(runtimes)}, batch {batch}; ratio to the first, 95 % interval"
    )
    console.print(table)


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"
