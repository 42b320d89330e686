"""Python scripts in a process of their own, with the installed onnxquant: the source tree has no onnxquant.passes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

PRELUDE = f"import sys, onnxquant.pipeline; sys.path.append({str(ROOT)!r})\n"
"""Finds `tests` too, once onnxquant has been found where it is installed."""


def run_script(
    script: str, *arguments: object, path: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Python code from an empty folder, or from `path`.

    Args:
        script: the code.
        arguments: its ``sys.argv[1:]``.
        path: folder that packages are imported from first.
        check: whether a failure is an AssertionError with what it said.
    """
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=path or folder, env=environment, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done
