"""Calibration as a file: what was observed of a model's tensors, to rewrite it again without its data.

A file of ranges belongs to the graph it was measured on, in canonical form. It holds what the passes of one recipe ask
for, exact to the bit, so that a rewrite from it is the one from the data; and the smallest and largest value of every
float activation that the model file itself names, which is what TensorRT's calibration cache is made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from onnxquant.calibration.observers import AnyObserver
from onnxquant.errors import OnnxquantError, first_invalid


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
