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
        list[Path], typer.Argument(metavar="MODEL...", help="ONNX files; ratios are to the first.", show_default=False)
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
            help="Run on the first samples of: image folder or zip, .npz, .npy, polygraphy JSON or load_data() script "
            "[default: random values]."
        ),
    ] = None,
    preprocess: Preprocess = None,
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt"], typer.Option(help="Execution provider of ONNX Runtime.")
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one operator [default: all cores].")] = None,
    session_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Session configuration, e.g. session.disable_quant_qdq=1; repeatable."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that loading or a turn of a model may take.")] = 600,
    as_json: Json = False,
) -> None:
    """Time models in ONNX Runtime: a process for each, one at a time, taking turns."""
    from onnxquant.cli.options import open_data, print_json, progress_bar
    from onnxquant.errors import OnnxquantError
    from onnxquant.graph.model import read_proto
    from onnxquant.measure.bench import bench, data_feed, random_feed, refuse_engine, require_provider

    if data and shape:
        raise OnnxquantError("--shape: is for random inputs; leave it out, or --data")
    if preprocess and not data:
        raise OnnxquantError("--preprocess: needs data; give some with --data")
    require_provider(provider)
    shapes = dict(map(_parse_shape, shape or ()))
    entries = dict(map(_parse_entry, session_option or ()))
    feeds: list[Feed] = []
    inputs: set[str] = set()
    for path in models:
        refuse_engine(path)
        proto = read_proto(path)
        inputs.update(value.name for value in proto.graph.input)
        if data:
            feeds.append(data_feed(open_data(data, path, preprocess=preprocess), proto, batch))
        else:
            feeds.append(random_feed(proto, str(path), batch, shapes))
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


def _parse_shape(text: str) -> tuple[str, list[int]]:
    from onnxquant.errors import OnnxquantError

    name, _, sizes = text.rpartition("=")
    try:
        shape = [int(size) for size in sizes.lower().split("x")]
    except ValueError:
        shape = []
    if not name or not shape or min(shape) < 1:
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
    console.print(f"{len(timings[0].rounds)} rounds on {provider}, batch {batch}; ratio to the first, 95 % interval")
    console.print(table)


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"
