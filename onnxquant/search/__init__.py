"""Choosing quantizers by what they do to a layer's output; uses torch, so import it when used."""

import onnxquant.torch_graph  # noqa: F401  # says what to install where torch isn't
