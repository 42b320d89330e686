"""Errors as polygraphy has them: logged as one line, and raised as its own exception, which its tools end on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polygraphy.logger import G_LOGGER

from onnxquant.errors import OnnxquantError


@contextmanager
def as_polygraphy_errors() -> Iterator[None]:
    """Raise PolygraphyException for OnnxquantError, so that `polygraphy run` prints no traceback."""
    try:
        yield
    except OnnxquantError as error:
        G_LOGGER.critical(str(error))
