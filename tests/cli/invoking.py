"""Calling one verb without a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.testing import CliRunner, Result

from onnxquant.errors import OnnxquantError


class Verb:
    """A command of `onnxquant.cli` to call with its arguments."""

    def __init__(self, command: Callable[..., None]) -> None:
        self._app = typer.Typer()
        self._app.command()(command)

    def __call__(self, *arguments: Any) -> Result:
        return CliRunner().invoke(self._app, [str(argument) for argument in arguments])

    def error(self, *arguments: Any) -> str:
        """What a call with bad input says: one line, and the exit code for bad input."""
        result = self(*arguments)
        assert isinstance(result.exception, OnnxquantError), result.output
        assert result.exception.exit_code == 2
        assert result.stdout == ""
        assert "\n" not in str(result.exception)
        return str(result.exception)
