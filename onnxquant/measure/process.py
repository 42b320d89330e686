"""A process for one model, so that models share neither threads nor memory while they are measured."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from onnxquant.deploy.tensorrt import plain_message
from onnxquant.errors import OnnxquantError

_WORKER = Path(__file__).with_name("bench_worker.py")

_FAILED = {"load": "ONNX Runtime refuses the model", "load_engine": "TensorRT can't load it"}


class WorkerProcess:
    """A worker process; as a context it is gone afterwards, whatever happened.

    Args:
        path: of the model, for messages.
        timeout: seconds that an answer may take.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path, self._timeout = path, timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self.pid = self._process.pid

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):  # what could not be written no longer matters
                assert stream is not None
                stream.close()

    def ask(self, *request: Any) -> Any:
        """The worker's answer to the name of one of its methods and the arguments.

        Raises:
            OnnxquantError: it reports an error, died, or takes longer than the timeout.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        start = time.monotonic()
        timer = threading.Timer(self._timeout, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            pickle.dump(request, stdin)
            stdin.flush()
            outcome, value = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise self._died(request[0], time.monotonic() - start >= self._timeout) from None
        finally:
            timer.cancel()
        if outcome == "error":
            said = plain_message(value) if request[0] == "load_engine" else value
            raise OnnxquantError(f"{self.path}: {_FAILED.get(request[0], 'running it failed')}: {said}")
        return value

    def _died(self, request: str, late: bool) -> OnnxquantError:
        code = self._process.wait()
        if late:
            what = "loading" if request in _FAILED else "running"
            return OnnxquantError(
                f"{self.path}: {what} it took more than {self._timeout:g} s; give it more time with --timeout"
            )
        if code < 0:
            name = signal.Signals(-code).name
            reason = "; the system may have run out of memory" if name == "SIGKILL" else ""
            return OnnxquantError(f"{self.path}: its process was killed by {name}{reason}")
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        return OnnxquantError(f"{self.path}: its process ended with exit code {code}: {said[-1]}")
