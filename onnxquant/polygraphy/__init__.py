"""onnxquant inside polygraphy: a loader, options for `polygraphy run`, and scripts for two of its own options.

polygraphy is imported when something here is used, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxquant.errors import OnnxquantError

if TYPE_CHECKING:
    from onnxquant.polygraphy.loader import QuantizeOnnx as QuantizeOnnx

__all__ = ["QuantizeOnnx"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import polygraphy  # noqa: F401
    except ImportError:
        raise missing(f"{__name__}.{name}") from None
    from onnxquant.polygraphy import loader

    return getattr(loader, name)


def missing(what: str) -> OnnxquantError:
    """The error for `what`, where polygraphy is not installed."""
    return OnnxquantError(f"{what} needs polygraphy: pip install 'onnxquant[polygraphy]'")
