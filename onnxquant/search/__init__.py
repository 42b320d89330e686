"""Choosing quantizers by what they do to a layer's output; uses `onnxquant.torch_graph`, so import it when used."""
