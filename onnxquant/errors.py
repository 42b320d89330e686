"""The errors a user can meet, each with the exit code the command line ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class OnnxquantError(Exception):
    """One line that names the file, node or option, says what is wrong and what to do."""

    exit_code = 2


class BudgetError(OnnxquantError):
    """The rewritten model runs, but misses what was asked of it."""

    exit_code = 3


class AccuracyError(BudgetError):
    """Its output is further from the original's than the stated tolerance."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_invalid(error: ValidationError) -> str:
    """The first thing pydantic found wrong: ``field: what (got value)``."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "value"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown option"
    if first["type"] == "missing":
        return f"{where}: {first['msg']}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')} (got {repr(first['input'])[:60]})"


def missing_polygraphy(what: str) -> OnnxquantError:
    """The error for `what`, where polygraphy is not installed."""
    return OnnxquantError(f"{what} needs polygraphy: pip install 'onnxquant[polygraphy]'")
