"""What several verbs share: options, opening data for a model, progress, and printing that is safe for any name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from onnxquant.calibration.dataset import Dataset
    from onnxquant.graph.model import Model

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)]
Data = Annotated[
    str,
    typer.Option(help="Image folder or zip, .npz, .npy, polygraphy JSON or load_data() script.", show_default=False),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples run at once, where the model's batch axis is dynamic.")]
PerClass = Annotated[
    str | None,
    typer.Option(metavar="START:STOP", help="Use these positions of every class only, in file order; e.g. 4500:"),
]
Preprocess = Annotated[
    str | None,
    typer.Option(metavar="imagenet|unit|JSON", help="How images become the input, where the model itself doesn't say."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use so many samples, spread evenly over the data.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def open_data(
    source: str,
    model: Path | Model,
    per_class: str | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
    option: str = "--data",
) -> Dataset:
    """The samples that the user named, for the inputs of `model` and preprocessed as it says, or the user does.

    Args:
        source: value of `option`.
        model: its path, or itself.
        per_class: value of ``--per-class``.
        preprocess: value of ``--preprocess``; goes before the model's metadata.
        limit: value of ``--limit``.
        option: what messages call the option.

    Raises:
        OnnxquantError: any of them is bad.
    """
    from onnxquant.calibration.dataset import input_specs, open_dataset, parse_slice
    from onnxquant.errors import OnnxquantError
    from onnxquant.graph.model import read_proto
    from onnxquant.preprocessing import Preprocessing, classes_from_metadata, parse_preprocessing

    if isinstance(model, Path):
        proto = read_proto(model)
        specs, name = input_specs(proto), str(model)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
    else:
        specs, name, metadata = input_specs(model.graph), model.name, model.metadata
    if preprocess is None:
        preprocessing = Preprocessing.from_metadata(metadata, name)
    else:
        preprocessing = parse_preprocessing(preprocess, specs)
    chosen = None if per_class is None else parse_slice(per_class)
    classes = classes_from_metadata(metadata, name)
    try:
        return open_dataset(source, specs, preprocessing, chosen, classes, limit)
    except OnnxquantError as error:
        raise OnnxquantError(f"{option} {error}") from error.__cause__


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Make sure, before any work, that no output takes the place of an input, of another output or of a device.

    Args:
        outputs: by option; None for one that wasn't given.
        inputs: same.

    Raises:
        OnnxquantError: one does, or its folder doesn't exist.
    """
    from onnxquant.errors import OnnxquantError

    seen: dict[str, str] = {}
    for option, output in outputs.items():
        if output is None:
            continue
        if (os.path.exists(output) and not output.is_file()) or not output.parent.is_dir():
            raise OnnxquantError(f"{option} {output}: can't be written (not a file in an existing folder)")
        for name, source in inputs.items():
            if source and os.path.exists(source) and os.path.exists(output) and os.path.samefile(source, output):
                remedy = "give another path, or --overwrite" if name == "MODEL" else "give another path"
                raise OnnxquantError(f"{option} {output}: is the input itself ({name}); {remedy}")
        if other := seen.get(str(output.absolute())):
            raise OnnxquantError(f"{option} {output}: is what {other} writes; give another path")
        seen[str(output.absolute())] = option


def parse_percent(text: str, option: str) -> float:
    """``0.5%`` as 0.005.

    Raises:
        OnnxquantError: it is no percentage from 0 to 100.
    """
    from onnxquant.errors import OnnxquantError

    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share < 1:
        raise OnnxquantError(f"{option} {text}: must be a percentage, for example 0.5%")
    return share


class ProgressBar:
    """A bar with the time left, and what it is for.

    Args:
        progress: that draws it.
        what: see there.
    """

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._task, self._done = progress, progress.add_task(what, total=None), 0

    def __call__(self, done: int, total: int) -> None:
        """Draw it anew; a smaller `done` than before begins anew, and so does the estimate."""
        if done < self._done:
            self._progress.reset(self._task)
        self._done = done
        self._progress.update(self._task, completed=done, total=total)

    def begin(self, what: str) -> None:
        """Begin anew, for something else."""
        self._progress.reset(self._task, total=None, description=what)
        self._done = 0


@contextmanager
def progress_bar(what: str) -> Iterator[ProgressBar]:
    """A bar on stderr, drawn on terminals only; give what is yielded (done, total)."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    console, columns = Console(stderr=True), (*Progress.get_default_columns(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ProgressBar(progress, what)


def open_console(stderr: bool = False) -> Console:
    """A console on stdout, or stderr; what goes into a file or pipe is never cut to a terminal's width."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, stderr=stderr)
    if not console.is_terminal:
        console.width = 10_000
    return console


def shown(name: str) -> str:
    """A name from a file, safe to print with rich: no markup, no control characters."""
    from rich.markup import escape

    return escape(name if name.isprintable() else ascii(name))


def print_json(document: Any) -> None:
    """Print a document as JSON on stdout; JSON has no infinity, so that becomes the text "inf" or "-inf"."""
    import json

    typer.echo(json.dumps(_finite(document), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
