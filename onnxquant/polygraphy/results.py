"""polygraphy's saved inputs and outputs: outputs of another machine are read, and runs are written for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.batching import batches
from onnxquant.calibration.scripts import decode_polygraphy_json
from onnxquant.errors import OnnxquantError, missing_polygraphy
from onnxquant.files import write_text

if TYPE_CHECKING:
    from onnxquant.calibration.samples import Dataset, InputSpec
    from onnxquant.measure.sessions import Runner

INPUTS, OUTPUTS = "inputs.json", "outputs.json"
"""The files that `save_run` writes."""


@dataclass(frozen=True)
class SavedOutputs:
    """What one of polygraphy's runners gave.

    Attributes:
        name: what messages call it.
        iterations: arrays by output name, one dict a run of the model.
    """

    name: str
    iterations: Sequence[dict[str, NDArray[Any]]]

    @property
    def tensors(self) -> set[str]:
        """Names of the tensors that every iteration holds."""
        return set.intersection(*(set(iteration) for iteration in self.iterations))

    @property
    def floats(self) -> set[str]:
        """Those of floating-point type."""
        first = self.iterations[0]
        return {name for name in self.tensors if np.issubdtype(first[name].dtype, np.floating)}


def split_runner(source: Path) -> tuple[Path, str | None] | None:
    """``outputs.json`` or ``outputs.json:RUNNER`` as (path, runner); None for any other path."""
    match = re.fullmatch(r"(.+\.json)(?::(.+))?", str(source), re.DOTALL | re.IGNORECASE)
    return (Path(match[1]), match[2]) if match else None


def load_outputs(path: Path, runner: str | None = None) -> SavedOutputs:
    """The outputs that ``polygraphy run --save-outputs`` wrote.

    Args:
        path: the file.
        runner: part of the name of the runner to take, where the file holds more than one.

    Raises:
        OnnxquantError: the file is missing or none of polygraphy's, or doesn't name one runner with outputs.
    """
    if not path.is_file():
        raise OnnxquantError(f"{path}: no such file")
    loaded = decode_polygraphy_json(path, "--save-outputs")

    from polygraphy.comparator import RunResults

    if not isinstance(loaded, RunResults):
        raise OnnxquantError(
            f"{path}: not outputs that polygraphy saved (it holds something else); write it with polygraphy run "
            "--save-outputs"
        )
    found = [(name, iterations) for name, iterations in loaded.items() if runner is None or runner in name]
    if len(found) != 1:
        names = ", ".join(loaded.keys()) or "no runner"
        raise OnnxquantError(f"{path}: holds the outputs of {names}; choose one by part of its name: {path.name}:PART")
    ((name, iterations),) = found
    outputs = [{key: np.asarray(value) for key, value in iteration.items()} for iteration in iterations]
    if not outputs:
        raise OnnxquantError(f"{path}: {name} has no outputs; run it on at least one sample")
    return SavedOutputs(f"{path} ({name})", outputs)


def save_run(
    folder: Path,
    runners: Sequence[Runner],
    dataset: Dataset,
    specs: Sequence[InputSpec],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run models and write what goes in as ``inputs.json`` and what comes out as ``outputs.json``.

    ``polygraphy run`` takes them with ``--load-inputs`` and ``--load-outputs``. One iteration is one sample, or as many
    as a fixed batch axis says. All is in memory until it is written.

    Args:
        folder: exists.
        runners: of the models; their names are those that polygraphy will show.
        dataset: for the models.
        specs: the inputs of them all.
        progress: called with (samples done, samples in all).

    Raises:
        OnnxquantError: polygraphy is not installed, a model can't be run, or a file can't be written.
    """
    try:
        from polygraphy.comparator import IterationResult, RunResults
        from polygraphy.json import to_json
    except ImportError:
        raise missing_polygraphy(f"--polygraphy-json {folder}: writing it") from None
    inputs: list[dict[str, NDArray[Any]]] = []
    results: list[tuple[str, list[Any]]] = [(runner.name, []) for runner in runners]
    done = 0
    for batch in batches(dataset, 1, specs):
        inputs.append(batch.feeds)
        filled = replace(batch, padded=0)  # the other machine runs the padding too, and gives rows for it
        for runner, (name, iterations) in zip(runners, results, strict=True):
            outputs = list(runner.outputs)
            values = dict(zip(outputs, runner.run(filled, outputs), strict=True))
            iterations.append(IterationResult(values, runner_name=name))
        done += batch.valid
        progress(done, len(dataset))
    write_text(folder / INPUTS, to_json(inputs), "--polygraphy-json")
    write_text(folder / OUTPUTS, RunResults(results).to_json(), "--polygraphy-json")
