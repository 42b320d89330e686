"""Processes of `bench_peers.py`: a virtual environment for every tool, and runs whose cost is measured."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from peers.quantize import Peer

MEASURE = Path(__file__).with_name("measure.py")


class Failed(Exception):
    """A tool's run that failed; the message is its last line."""


def measured(command: Sequence[str], folder: Path, timeout: float, **variables: str) -> dict[str, float]:
    """What a command took, see `peers/measure.py`; it runs in `folder`, where log.txt keeps what it printed.

    Raises:
        Failed: it ended with another status than 0, or not in time.
    """
    cost, log = folder / "cost.json", folder / "log.txt"
    cost.unlink(missing_ok=True)
    with log.open("wb") as file:
        launcher = [sys.executable, "-S", str(MEASURE), str(cost.absolute()), *command]
        process = subprocess.Popen(
            launcher, cwd=folder, stdout=file, stderr=file, env={**os.environ, **variables}, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"took more than {timeout:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    result = json.loads(cost.read_text())
    if result["status"]:
        raise Failed(said(log.read_text("utf-8", "replace"), result["status"]))
    return result


def said(log: str, status: int) -> str:
    """The line of a failed command's log that says why: what TensorRT's parser found at a node, or the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or [f"ended with status {status}"]
    found = [i for i, line in enumerate(lines) if line.startswith("[E] In node ")]
    return " ".join(lines[found[0] : found[0] + 2]).removeprefix("[E] ") if found else lines[-1]


def environment(peer: Peer, work: Path) -> str:
    """The Python of the peer's virtual environment, made where it isn't there yet; versions.txt says what it holds."""
    digest = hashlib.sha256(" ".join(peer.requirements).encode()).hexdigest()[:8]
    folder = (work / "venvs" / f"{peer.requirements[0].replace('==', '-')}-{digest}").absolute()
    python, versions = folder / "bin" / "python", folder / "versions.txt"
    if not versions.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "install", "-q", *peer.requirements], capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise Failed(f"can't be installed: {(errors or ['pip failed'])[-1]}")
        versions.write_text(subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout)
    return str(python)
