"""How far passes that take long have come, in a file that an interrupted rewrite goes on from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, RootModel

from onnxquant.errors import OnnxquantError
from onnxquant.files import write_text
from onnxquant.plan import PlanEntry

if TYPE_CHECKING:
    from onnxquant.pass_manager import PassContext

SECONDS = 5.0
"""Between two writes."""


class Checkpoint(BaseModel):
    """What a pass knows so far.

    Attributes:
        fingerprint: of what it works on, and how.
        done: steps that are over.
        entries: the plan's, as they are by then.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    done: int = 0
    entries: list[PlanEntry] = []


class Checkpoints(RootModel[dict[str, Checkpoint]]):
    """Those of all passes of a recipe, by the pass's name."""


class CheckpointFile:
    """A pass's place in a file; without a path nothing is kept. `onnxquant.rewrite` removes the file at the end.

    Args:
        step: the pass, whose options tell one run from another; its ``resume`` is the file.
        context: with the model, the plan so far and the data, which do too.
    """

    def __init__(self, step: Any, context: PassContext) -> None:
        self._path: Path | None = step.resume
        self._name, self._written, self._fingerprint = step.pass_name(), time.monotonic(), ""
        self._others: dict[str, Checkpoint] = {}
        data = context.calibration
        if self._path is None or data is None:
            return  # spares the model's bytes
        first = [array.tobytes() for array in data[0].feeds.values()]
        model = context.model.to_proto().SerializeToString(deterministic=True)
        texts = [data.name, str(len(data)), step.model_dump_json(exclude={"resume"}), context.plan.to_json()]
        digest = hashlib.sha256()
        for part in [model, *first, *(text.encode() for text in texts)]:
            digest.update(hashlib.sha256(part).digest())
        self._fingerprint = digest.hexdigest()

    def read(self) -> Checkpoint:
        """Where to go on from.

        Raises:
            OnnxquantError: the file holds no checkpoints, or the pass's is of another model, data or options.
        """
        fresh = Checkpoint(fingerprint=self._fingerprint)
        if self._path is None or not self._path.exists():
            return fresh
        try:
            self._others = Checkpoints.model_validate_json(self._path.read_text("utf-8")).root
        except (OSError, ValueError):
            raise OnnxquantError(f"resume {self._path}: not the state of a rewrite; give another file") from None
        found = self._others.pop(self._name, fresh)
        if found.fingerprint != self._fingerprint:
            raise OnnxquantError(
                f"resume {self._path}: is of another model, data or recipe; remove it, or give another file"
            )
        return found

    def write(self, done: int, entries: Iterable[PlanEntry], *, at_once: bool = False) -> None:
        """Keep the state, unless that was done a moment ago and it may wait."""
        if self._path is not None and (at_once or time.monotonic() - self._written >= SECONDS):
            state = Checkpoint(fingerprint=self._fingerprint, done=done, entries=list(entries))
            every = Checkpoints({**self._others, self._name: state})
            write_text(self._path, every.model_dump_json(exclude_none=True), "resume")
            self._written = time.monotonic()
