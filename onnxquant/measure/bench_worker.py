"""One model in a process of its own, for `onnxquant.measure.bench`.

The parent starts this file by its path: importing it as a part of onnxquant would bring onnx and graphsurgeon along,
and their memory would count as the model's. Requests come on stdin and answers go to stdout, pickled:
the name of a method of `Worker` and its arguments. The process ends with stdin, so that none outlives the parent.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from typing import Any

if sys.path and os.path.realpath(sys.path[0] or ".") == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]  # this folder's modules must not stand in for others of the same name

SESSION_CONFIGURATION = {"session.force_spinning_stop": "1"}
"""Threads spin within a run, as they do by default, and not beyond it, where they would slow down other models."""


def main() -> None:
    """Answer requests until stdin ends: ("ok", value) or ("error", message of one line)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # ONNX Runtime prints to stdout when a provider fails
    worker = Worker()
    while True:
        try:
            name, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = ("ok", getattr(worker, name)(*arguments))
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            answer = ("error", (str(error).strip().splitlines() or [type(error).__name__])[0])
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            return


class Worker:
    """A session and what it is fed."""

    def load(
        self, path: str, feeds: dict[str, Any], providers: list[str], threads: int | None, entries: dict[str, str]
    ) -> tuple[float, list[str]]:
        """Create the session; returns the seconds that took and the providers it uses, the preferred one first.

        Args:
            path: of the ONNX file.
            feeds: an array for every input.
            providers: of ONNX Runtime, the preferred one first.
            threads: for one operator; None for ONNX Runtime's own choice.
            entries: session configuration, which goes before `SESSION_CONFIGURATION`.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        for key, value in {**SESSION_CONFIGURATION, **entries}.items():
            options.add_session_config_entry(key, value)
        self._feeds = feeds
        start = time.perf_counter()
        self._session = ort.InferenceSession(path, options, providers=providers)
        return time.perf_counter() - start, self._session.get_providers()

    def turn(self, warm_seconds: float, timed_seconds: float) -> list[float]:
        """Run for `warm_seconds`, then for `timed_seconds`, each time once at least; returns the seconds of every run
        of the latter.
        """
        self._run_for(warm_seconds)
        return self._run_for(timed_seconds)

    def _run_for(self, seconds: float) -> list[float]:
        times: list[float] = []
        first = time.perf_counter()
        while not times or time.perf_counter() - first < seconds:
            start = time.perf_counter()
            self._session.run(None, self._feeds)
            times.append(time.perf_counter() - start)
        return times

    def memory(self) -> int | None:
        """Peak resident memory of this process, in bytes; None where the system doesn't tell."""
        try:
            # ru_maxrss won't do on Linux: a process inherits that of its parent, peak included.
            with open("/proc/self/status", encoding="ascii") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            pass
        try:
            import resource
        except ImportError:
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
