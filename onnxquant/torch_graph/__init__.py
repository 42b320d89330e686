"""An ONNX graph in torch: values and gradients of any tensor, any part of the graph run with tensors replaced.

The only place that imports torch. It is optional and slow to import, so nothing else in onnxquant imports this package
before it is used.
"""

from __future__ import annotations

from onnxquant.errors import OnnxquantError

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise OnnxquantError("this needs torch, which is not installed: pip install 'onnxquant[search]'") from None

from onnxquant.torch_graph.gradients import Gradient, SampledLoss, gradients, typical_gradients
from onnxquant.torch_graph.graph import TorchGraph

__all__ = ["Gradient", "SampledLoss", "TorchGraph", "gradients", "typical_gradients"]
