"""A build's progress, and its cancellation, through TensorRT's progress monitor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TOTAL = 1000
"""Progress is told in thousandths."""


@dataclass
class _Phase:
    """A phase is a part of one step of its parent."""

    parent: str | None
    steps: int
    done: int = 0


def progress_monitor(module: Any, progress: Callable[[int, int], None]) -> Any:
    """An `IProgressMonitor` for a builder's configuration.

    Its `cancel()` ends the build at the next step; `failure` is what `progress` raised, which cancels too: an exception
    must not pass through TensorRT's C++ code.

    Args:
        module: the TensorRT module.
        progress: called with (done, `TOTAL`) from the thread that builds; `done` never falls.
    """

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._phases: dict[str, _Phase] = {}
            self._told = -1
            self._cancelled = False

        def cancel(self) -> None:
            self._cancelled = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = _Phase(parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase := self._phases.get(phase_name):
                phase.done = step + 1
                self._tell(phase)
            return not self._cancelled

        def _tell(self, phase: _Phase) -> None:
            fraction = phase.done / max(phase.steps, 1)
            while (parent := self._phases.get(phase.parent or "")) is not None:
                fraction, phase = (parent.done + min(fraction, 1)) / max(parent.steps, 1), parent
            done = min(int(fraction * TOTAL), TOTAL)
            if done > self._told:
                self._told = done
                try:
                    progress(done, TOTAL)
                except BaseException as error:
                    self.failure = error
                    self.cancel()

    return Monitor()
