"""The log2 quantizer as ONNX functions of standard operators (see `onnxquant.quantizers.log2`).

Runtimes inline functions, so no plugin and no custom kernel is needed. The quantizer and the dequantizer are two
functions with an int8 edge between them.
"""

from __future__ import annotations

# Natural logarithms: steps and offsets arrive as multiples of ln 2. The first Cast makes one body serve float16 graphs:
# ε = 1e-5 is below what float16 holds with any precision, so the arithmetic is in float32. No code leaves int8, since
# the values are clipped before the logarithm. Round and Cast stand where QuantizeLinear could: TensorRT-RTX 1.7 gives
# the quantize layers of every copy of a function the same name, and refuses the second.
_QUANTIZE = """
<opset_import: ["": {opset}], domain: "onnxquant">
Log2QuantizeLinear <epsilon, minimum, maximum, log_offset, log_scale> (x) => (codes)
{{
    low = Constant <value_float: float = @minimum> ()
    high = Constant <value_float: float = @maximum> ()
    eps = Constant <value_float: float = @epsilon> ()
    offset = Constant <value_float: float = @log_offset> ()
    scale = Constant <value_float: float = @log_scale> ()
    wide = Cast <to = 1> (x)
    clipped = Clip (wide, low, high)
    positive = Add (clipped, eps)
    logarithm = Log (positive)
    centred = Sub (logarithm, offset)
    steps = Div (centred, scale)
    rounded = Round (steps)
    codes = Cast <to = 3> (rounded)
}}
"""

_DEQUANTIZE = """
<opset_import: ["": {opset}], domain: "onnxquant">
Log2DequantizeLinear <log_offset, log_scale, to> (codes) => (y)
{{
    offset = Constant <value_float: float = @log_offset> ()
    scale = Constant <value_float: float = @log_scale> ()
    steps = Cast <to = 1> (codes)
    centred = Mul (steps, scale)
    logarithm = Add (centred, offset)
    wide = Exp (logarithm)
    y = Cast <to: int = @to> (wide)
}}
"""

LOG2_FUNCTIONS = {
    "codes = int8(round((ln(clip(x, minimum, maximum) + epsilon) - log_offset) / log_scale))": _QUANTIZE,
    "y = exp(codes * log_scale + log_offset), cast to the type numbered `to`": _DEQUANTIZE,
}
"""By what each computes."""
