"""onnxquant inside polygraphy: a loader, options for `polygraphy run`, and scripts for two of its own options.

polygraphy is imported when something here is used, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxquant.errors import missing_polygraphy

if TYPE_CHECKING:
    from onnxquant.polygraphy.loader import QuantizeOnnx as QuantizeOnnx

__all__ = ["QuantizeOnnx"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import polygraphy  # noqa: F401
    except ImportError:
        raise missing_polygraphy(f"{__name__}.{name}") from None
    from onnxquant.polygraphy import loader

    return getattr(loader, name)
