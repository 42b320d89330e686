"""Structure-aware post-training quantization of CNN-Transformer hybrids, ONNX in and ONNX out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxquant.graph.model import load as load
    from onnxquant.graph.model import save as save
    from onnxquant.observation import calibrate as calibrate
    from onnxquant.pipeline import RewriteResult as RewriteResult
    from onnxquant.pipeline import rewrite as rewrite

__version__ = "0.1.0"
__all__ = ["RewriteResult", "calibrate", "load", "rewrite", "save"]

_HOME = {
    "load": "graph.model",
    "save": "graph.model",
    "calibrate": "observation",
    "rewrite": "pipeline",
    "RewriteResult": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `onnxquant --help` must not wait for onnx and numpy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
