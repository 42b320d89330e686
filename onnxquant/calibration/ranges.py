"""Calibration as a file: what was observed of a model's tensors, to rewrite it again without its data.

A file of ranges belongs to the graph it was measured on, in canonical form. It holds what the passes of one recipe ask
for, exact to the bit, so that a rewrite from it is the one from the data; and the smallest and largest value of every
float activation that the model file itself names, which is what TensorRT's calibration cache is made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from onnxquant.calibration.collector import collect
from onnxquant.calibration.dataset import split_held
from onnxquant.calibration.observers import MinMax, Observer
from onnxquant.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECIPE, DEFAULT_SAMPLES, DEFAULT_TARGET
from onnxquant.errors import OnnxquantError, first_invalid
from onnxquant.graph.model import Source, load
from onnxquant.pass_manager import AnyObserver, Observation, PassContext, PassManager
from onnxquant.passes.calibrate import Calibrate
from onnxquant.pipeline import CANONICAL_PASSES, open_calibration
from onnxquant.recipes import build_passes, load_recipe
from onnxquant.targets import load_target

FLOATS = (np.float16, np.float32, np.float64)


class Ranges(BaseModel):
    """What calibration observed.

    Attributes:
        version: of this format.
        model: name of the file that was measured, for messages.
        fingerprint: of its canonical graph, as the first calibration found it.
        recipe: the one whose passes were asked what to observe.
        samples: number of samples that were run. `split_held` with this number gives the same samples again, and those
            that were held back.
        tensors: tensor -> name of the observer -> its state.
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    model: str
    fingerprint: str
    recipe: str
    samples: Annotated[int, Field(ge=1)]
    tensors: dict[str, dict[str, dict[str, JsonValue]]]

    @field_validator("tensors")
    @classmethod
    def _finite(cls, tensors: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
        for tensor, observers in tensors.items():
            for observer, state in observers.items():
                for name, value in state.items():
                    try:
                        finite = bool(np.isfinite(np.asarray(value)).all())
                    except (TypeError, ValueError):  # texts, null, lists of unequal lengths
                        finite = False
                    if not finite:
                        raise ValueError(f"tensor {tensor}: {name} of its {observer} must be finite numbers")
        return tensors

    def observed(self, tensor: str, observer: type[AnyObserver]) -> AnyObserver | None:
        """What an observer saw of a tensor; None where it wasn't there.

        Raises:
            OnnxquantError: what is kept of it is damaged.
        """
        state = self.tensors.get(tensor, {}).get(observer.__name__)
        if state is None:
            return None
        try:
            return observer.from_state(state)
        except ValueError as error:
            raise OnnxquantError(
                f"ranges: {observer.__name__} of tensor {tensor} {error}; make them again with onnxquant calibrate"
            ) from None

    def require_measured_on(self, graph: gs.Graph, name: str, tensors: Iterable[str]) -> None:
        """Make sure that the ranges are for this graph.

        Args:
            graph: in canonical form.
            name: what messages call its model.
            tensors: those that are asked for.

        Raises:
            OnnxquantError: they are for another one; the message names the first tensor that they lack.
        """
        if fingerprint(graph) == self.fingerprint:
            return
        missing = next((tensor for tensor in tensors if tensor not in self.tensors), None)
        why = "its weights or nodes differ" if missing is None else f"they lack tensor {missing}"
        raise OnnxquantError(
            f"ranges: were measured on another model ({self.model}) than {name}, {why}; run onnxquant calibrate on it"
        )

    def to_json(self) -> str:
        """A line a tensor."""
        document = self.model_dump()
        tensors = document.pop("tensors")
        lines = (f"  {json.dumps(tensor)}: {json.dumps(seen, allow_nan=False)}" for tensor, seen in tensors.items())
        head = json.dumps(document, indent=1).removesuffix("\n}")
        return f'{head},\n "tensors": {{\n' + ",\n".join(lines) + "\n }\n}\n"

    @classmethod
    def from_json(cls, path: Path) -> Ranges:
        """Read a file that `to_json` made.

        Raises:
            OnnxquantError: the file is missing or damaged; the message names the tensor that is wrong.
        """
        remedy = "make them with onnxquant calibrate"
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except OSError as error:
            raise OnnxquantError(f"--ranges {path}: can't be read ({error.strerror}); {remedy}") from None
        except UnicodeDecodeError:
            raise OnnxquantError(f"--ranges {path}: not a file of ranges; {remedy}") from None
        except ValidationError as error:
            raise OnnxquantError(f"--ranges {path}: {first_invalid(error)}; {remedy}") from None


def calibrate(
    model: Source,
    calibration: Any,
    *,
    recipe: str = DEFAULT_RECIPE,
    target: str = DEFAULT_TARGET,
    overrides: Sequence[str] = (),
    samples: int = DEFAULT_SAMPLES,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ranges:
    """Observe a model's tensors, on the samples that `onnxquant.rewrite` would calibrate on.

    The data is run twice: once for the recipe, exactly as a rewrite does it, and once for all activations, which keep
    ONNX Runtime from fusing nodes and so change the last bits of what it computes.

    Args:
        model: as in `onnxquant.rewrite`; the other arguments too.
        calibration: what to run. As much as a rewrite would hold back to judge its result on takes no part.
        recipe: name of the recipe, or path of its file, that the ranges are for.
        target: name of the runtime that the rewrite is for.
        overrides: options of passes, ``pass.option=value`` each.
        samples: the most samples to run.
        batch_size: the most to run at once.
        progress: called with (runs done, runs in all), in samples.

    Raises:
        OnnxquantError: bad input, of whichever kind, or NaN or infinite values in an activation.
    """
    source = load(model)
    dataset = open_calibration(source, calibration)
    if dataset is None or samples < 1:
        raise OnnxquantError(f"{source.name}: calibration needs data, and at least 1 sample of it")
    data, _ = split_held(dataset, samples)
    runs = 2 * len(data)
    whole, activations = source.to_proto(), _activations(source.graph)
    context = PassContext(
        source,
        load_target(target),
        calibration=data,
        batch_size=batch_size,
        progress=lambda done, _: progress(done, runs),
    )
    steps = PassManager([*CANONICAL_PASSES, *build_passes(load_recipe(recipe), list(overrides))]).passes
    asked = [position for position, step in enumerate(steps) if isinstance(step, Calibrate)]
    observed: dict[Observation, Observer] = {}
    measured = ""
    for position, step in enumerate(steps[: max(asked, default=len(CANONICAL_PASSES) - 1) + 1]):
        if position == min(asked, default=None):
            measured = fingerprint(source.graph)
        context.upcoming = steps[position + 1 :]
        step.run(source.graph, context)
        observed |= context.observations
    everything: dict[Observation, MinMax] = {
        (tensor, MinMax): MinMax() for tensor in activations if (tensor, MinMax) not in observed
    }
    if everything:
        collect(
            whole, everything, data, batch_size=batch_size, progress=lambda done, _: progress(len(data) + done, runs)
        )
    tensors: dict[str, dict[str, Any]] = {tensor: {} for tensor in activations}
    for (tensor, kind), observer in (everything | observed).items():
        tensors.setdefault(tensor, {})[kind.__name__] = observer.state()
    return Ranges(
        model=Path(source.name).name,
        fingerprint=measured or fingerprint(source.graph),
        recipe=recipe,
        samples=len(data),
        tensors=tensors,
    )


def fingerprint(graph: gs.Graph) -> str:
    """SHA-256 over the graph's nodes, names and constants, in hex."""
    digest = hashlib.sha256()
    for node in graph.nodes:
        names = [tensor.name for tensor in (*node.inputs, *node.outputs)]
        digest.update(repr((node.op, len(node.inputs), names)).encode())
    for name, tensor in sorted(graph.tensors().items()):
        if isinstance(tensor, gs.Constant):
            digest.update(repr((name, str(tensor.dtype), tensor.values.shape)).encode())
            digest.update(tensor.values.tobytes())
    return digest.hexdigest()


def _activations(graph: gs.Graph) -> list[str]:
    """Names of the float tensors of the main graph that are computed or fed, in order."""
    tensors = [*graph.inputs, *(output for node in graph.nodes for output in node.outputs)]
    return [tensor.name for tensor in tensors if tensor.name and tensor.dtype in FLOATS]
