"""Running the real `polygraphy` command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def polygraphy(*arguments: Any, cwd: Path, ok: bool = True, **environment: Any) -> str:
    """What the command prints on both streams; its exit status must be success, or failure where `ok` is False."""
    command = [Path(sys.executable).with_name("polygraphy"), *arguments]
    result = subprocess.run(
        [str(argument) for argument in command],
        cwd=cwd,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == ok, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout
