"""How far a search has come, in a file that an interrupted one goes on from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from onnxquant.errors import OnnxquantError
from onnxquant.files import write_text
from onnxquant.plan import PlanEntry

SECONDS = 5.0
"""Between two writes."""


class Checkpoint(BaseModel):
    """What is known so far.

    Attributes:
        fingerprint: of what is searched, and how.
        done: steps that are over.
        entries: the plan's, as they are by then.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    done: int = 0
    entries: list[PlanEntry] = []


class CheckpointFile:
    """A checkpoint's file; without a path nothing is kept.

    Args:
        path: of the file; it is removed at the end.
        parts: what tells a search from another: the model, the options, the data.
    """

    def __init__(self, path: Path | None, parts: Iterable[bytes]) -> None:
        self._path, digest = path, hashlib.sha256()
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        self._fingerprint, self._written = digest.hexdigest(), time.monotonic()

    def read(self) -> Checkpoint:
        """Where to go on from.

        Raises:
            OnnxquantError: the file is no checkpoint, or of another search.
        """
        if self._path is None or not self._path.exists():
            return Checkpoint(fingerprint=self._fingerprint)
        try:
            found = Checkpoint.model_validate_json(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            raise OnnxquantError(f"resume {self._path}: not the state of a search; give another file") from None
        if found.fingerprint != self._fingerprint:
            raise OnnxquantError(
                f"resume {self._path}: is of another model, data or search; remove it, or give another file"
            )
        return found

    def write(self, done: int, entries: Iterable[PlanEntry]) -> None:
        """Keep the state, unless that was done a moment ago."""
        if self._path is not None and time.monotonic() - self._written >= SECONDS:
            state = Checkpoint(fingerprint=self._fingerprint, done=done, entries=list(entries))
            write_text(self._path, state.model_dump_json(exclude_none=True), "resume")
            self._written = time.monotonic()

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
