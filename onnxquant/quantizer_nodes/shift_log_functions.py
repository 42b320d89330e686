"""The shift-log quantizer as ONNX functions of standard operators (see `onnxquant.quantizers.shift_log`).

As for log2, and for the same reasons: two functions with an int8 edge between them, arithmetic in float32, Round and
Cast instead of QuantizeLinear.
"""

from __future__ import annotations

_QUANTIZE = """
<opset_import: ["": {opset}], domain: "onnxquant">
ShiftLogQuantizeLinear <shift, unit, minimum, maximum, log_step, centre> (x) => (codes)
{{
    m = Constant <value_float: float = @shift> ()
    u = Constant <value_float: float = @unit> ()
    low = Constant <value_float: float = @minimum> ()
    high = Constant <value_float: float = @maximum> ()
    step = Constant <value_float: float = @log_step> ()
    k = Constant <value_float: float = @centre> ()
    wide = Cast <to = 1> (x)
    positive = Add (wide, m)
    ratio = Div (positive, u)
    clipped = Clip (ratio, low, high)
    logarithm = Log (clipped)
    steps = Div (logarithm, step)
    rounded = Round (steps)
    centred = Add (rounded, k)
    codes = Cast <to = 3> (centred)
}}
"""

# Where there is no zero code, the threshold is 0 and every level above it.
_DEQUANTIZE = """
<opset_import: ["": {opset}], domain: "onnxquant">
ShiftLogDequantizeLinear <shift, unit, threshold, log_step, centre, to> (codes) => (y)
{{
    m = Constant <value_float: float = @shift> ()
    u = Constant <value_float: float = @unit> ()
    step = Constant <value_float: float = @log_step> ()
    k = Constant <value_float: float = @centre> ()
    wide = Cast <to = 1> (codes)
    steps = Sub (wide, k)
    logarithm = Mul (steps, step)
    ratio = Exp (logarithm)
    level = Mul (ratio, u)
    kept = ThresholdedRelu <alpha: float = @threshold> (level)
    shifted = Sub (kept, m)
    y = Cast <to: int = @to> (shifted)
}}
"""

SHIFT_LOG_FUNCTIONS = {
    "codes = int8(round(ln(clip((x + shift) / unit, minimum, maximum)) / log_step) + centre)": _QUANTIZE,
    "y = l - shift if l > threshold, else -shift, where l = unit * exp((codes - centre) * log_step), "
    "cast to the type numbered `to`": _DEQUANTIZE,
}
"""By what each computes."""
