"""What is taken where the user says nothing; light, so that the command line can show it."""

DEFAULT_RECIPE = "efficientquant"
DEFAULT_TARGET = "onnxruntime"

DEFAULT_SAMPLES = 32
"""Samples to calibrate on (EfficientQuant, section 3.1: one batch of 32)."""

DEFAULT_BATCH_SIZE = 32

DEFAULT_MIN_SQNR = 10.0
"""dB. Below it the output shares little with the original's, whatever the model: the rewrite counts as failed."""

FLOAT_TYPES = ("fp32", "fp16")

DEFAULT_FLOAT_TYPE = "fp32"
"""The type that whatever isn't quantized computes in."""
