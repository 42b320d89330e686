"""Feeds in polygraphy's formats: its JSON of saved inputs, and Python scripts with a load_data() function."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxquant.calibration.samples import Feed
from onnxquant.errors import OnnxquantError, first_line, missing_polygraphy

DEFAULT_FUNCTION = "load_data"

MAX_BYTES = 2 * 1024**3
"""Feeds from a generator are kept in memory; an endless one is stopped here, before memory runs out."""


def split_script(source: str) -> tuple[Path, str] | None:
    """``path.py:function`` or ``path.py`` as (path, function); None for any other text."""
    match = re.fullmatch(r"(.+\.py)(?::(\w+))?", source, re.DOTALL)
    return (Path(match[1]), match[2] or DEFAULT_FUNCTION) if match else None


def run_script(path: Path, function: str, limit: int | None) -> list[Feed]:
    """At most `limit` feeds from `function` of the user's own script, which gets executed.

    Raises:
        OnnxquantError: the script fails, lacks the function or yields something else than feeds.
    """
    where = f"{path}:{function}"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # so that it can import what lies beside it
    try:
        with contextlib.redirect_stdout(sys.stderr):  # our own stdout may be JSON
            spec.loader.exec_module(module)
            if not callable(getattr(module, function, None)):
                raise OnnxquantError(
                    f"{path}: has no function {function}(); define one that yields dicts of arrays, or name another as "
                    f"{path}:FUNCTION"
                )
            return materialise(where, getattr(module, function)(), limit)
    except OnnxquantError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        reason = (str(error).splitlines() or [""])[0]
        raise OnnxquantError(
            f"{where}: the script failed with {type(error).__name__}: {reason}; run it alone"
        ) from error
    finally:
        sys.path.remove(str(path.parent))


def load_polygraphy_json(path: Path, limit: int | None) -> list[Feed]:
    """The feeds that ``polygraphy run --save-inputs`` wrote.

    Raises:
        OnnxquantError: polygraphy is not installed, or the file is none of its own.
    """
    loaded = decode_polygraphy_json(path, "--save-inputs")
    return materialise(str(path), loaded if isinstance(loaded, list) else [loaded], limit)


def decode_polygraphy_json(path: Path, option: str) -> Any:
    """What polygraphy saved as JSON, as its own objects and arrays.

    Args:
        path: the file.
        option: of ``polygraphy run`` that writes such a file, for messages.

    Raises:
        OnnxquantError: polygraphy is not installed, or the file is none of its own.
    """
    try:
        from polygraphy.json import load_json
    except ImportError:
        raise missing_polygraphy(f"{path}: reading it") from None
    try:
        silent = io.StringIO()  # polygraphy prints what it raises, and warnings about itself
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            return load_json(str(path))
    except Exception as error:  # polygraphy's own exceptions, and whatever broken base64 and headers raise
        what = option.removeprefix("--save-")
        raise OnnxquantError(
            f"{path}: not {what} that polygraphy saved ({first_line(error)}); write it with polygraphy run {option}"
        ) from None


def materialise(where: str, feeds: Iterable[Mapping[str, Any]], limit: int | None) -> list[Feed]:
    """The first `limit` feeds, as arrays in memory.

    Raises:
        OnnxquantError: one is no dict of arrays of numbers, there is none, or there is no end to them.
    """
    try:
        iterator = iter(feeds)
    except TypeError:
        raise OnnxquantError(f"{where}: gives a {type(feeds).__name__}, not dicts of arrays by input name") from None
    taken: list[Feed] = []
    size = 0
    for position, feed in enumerate(itertools.islice(iterator, limit)):
        if not isinstance(feed, Mapping):
            raise OnnxquantError(
                f"{where}: feed {position} is a {type(feed).__name__}, not a dict of arrays by input name"
            )
        try:
            taken.append({str(name): np.asarray(value) for name, value in feed.items()})
        except (ValueError, TypeError) as error:
            raise OnnxquantError(
                f"{where}: feed {position} does not hold arrays of numbers ({error}); give numpy arrays"
            ) from None
        size += sum(array.nbytes for array in taken[-1].values())
        if size > MAX_BYTES:
            raise OnnxquantError(
                f"{where}: more than {MAX_BYTES >> 30} GiB after {position + 1} feeds; say how many with --limit"
            )
    if not taken:
        raise OnnxquantError(f"{where}: gives no samples; it must give at least one dict of arrays by input name")
    return taken
