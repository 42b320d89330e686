"""GPU memory that a process takes: from NVML, or on a Jetson from tegrastats."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol

TEGRASTATS_INTERVAL = 0.1
"""Seconds between two lines of tegrastats."""

TEGRASTATS_PATIENCE = 3.0
"""Seconds to wait for its first line."""


class GpuMemory(Protocol):
    """Measures one process at a time: `start` before it touches the GPU, `stop` when it has run."""

    def start(self) -> None: ...

    def stop(self, pid: int) -> int | None:
        """Bytes that process `pid` takes; None where they can't be told."""


def open_gpu_memory() -> GpuMemory | None:
    """What this machine offers: tegrastats where it is on PATH, else NVML where pynvml and a driver are; else None."""
    if path := shutil.which("tegrastats"):
        return Tegrastats(path)
    try:
        return Nvml()
    except Exception:  # neither pynvml, nor a driver, nor a GPU: whichever it is, there is nothing to ask
        return None


class Nvml:
    """Memory of all GPUs by process, as NVML counts it.

    In a container NVML may know processes by other numbers; then it is what all GPUs hold more than before.

    Raises:
        ImportError: there is no pynvml.
        Exception: pynvml's own, where there is no driver.
    """

    def __init__(self) -> None:
        self._nvml: Any = import_module("pynvml")
        self._nvml.nvmlInit()
        count = self._nvml.nvmlDeviceGetCount()
        self._devices = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def start(self) -> None:
        self._before = self._used()

    def stop(self, pid: int) -> int | None:
        own = 0
        for device in self._devices:
            with suppress(self._nvml.NVMLError):  # not every driver lists processes
                processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
                own += sum(process.usedGpuMemory or 0 for process in processes if process.pid == pid)
        return own or max(0, self._used() - self._before)

    def _used(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)


class Tegrastats:
    """Peak of the RAM that a Jetson uses more than before: its CPU and GPU share one memory, and tegrastats doesn't
    tell whose it is.

    Args:
        path: of tegrastats.
    """

    def __init__(self, path: str) -> None:
        self._command = [path, "--interval", str(int(TEGRASTATS_INTERVAL * 1000))]

    def start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.DEVNULL)
        end = time.monotonic() + TEGRASTATS_PATIENCE
        while not self._lines() and self._process.poll() is None and time.monotonic() < end:
            time.sleep(TEGRASTATS_INTERVAL / 10)

    def stop(self, pid: int) -> int | None:
        try:
            time.sleep(2 * TEGRASTATS_INTERVAL)  # so that the state after the last run has its line
            used = self._lines()
        finally:
            self._process.kill()
            self._process.wait()
            self._log.close()
        return max(used) - used[0] if used else None

    def _lines(self) -> list[int]:
        # The process writes at the position of this very descriptor, so that reading must not move it.
        log = self._log.fileno()
        return parse_tegrastats(os.pread(log, os.fstat(log).st_size, 0).decode("utf-8", "replace"))


def parse_tegrastats(text: str) -> list[int]:
    """The RAM in use, in bytes, line by line of what tegrastats prints; other lines are left out.

    Every version has ``RAM used/totalMB`` in its lines, some after a date.
    """
    return [int(used) * 1024**2 for used in re.findall(r"\bRAM (\d+)/\d+MB\b", text)]
