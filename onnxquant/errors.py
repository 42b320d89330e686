"""The errors a user can meet, each with the exit code the command line ends with."""

from __future__ import annotations


class OnnxquantError(Exception):
    """One line that names the file, node or option, says what is wrong and what to do."""

    exit_code = 2


class AccuracyError(OnnxquantError):
    """The rewritten model runs, but its output is further from the original's than the stated tolerance."""

    exit_code = 3
