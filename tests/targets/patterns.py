"""Graphs that TensorRT refuses, each beside one that it accepts."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper


def ones(dtype, *shape):
    """A tensor of any of ONNX's types, all 1."""
    return helper.make_tensor("", dtype, shape, [1] * int(np.prod(shape)))


def zero(dtype):
    return helper.make_tensor("", dtype, [], [0])


def scales(count, value=0.01, dtype=np.float32):
    return np.full(count, value, dtype)


def graph(text, opset=17, **tensors):
    """A model from text, as `tests.graphs.parse`, with TensorProtos as well as arrays; not checked."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "mine" : 1]>\n'
    model = onnx.parser.parse_model(header + text.replace("<>", ""))
    for name, values in tensors.items():
        if not isinstance(values, onnx.TensorProto):
            values = onnx.numpy_helper.from_array(np.asarray(values))
        model.graph.initializer.add().CopyFrom(values)
        model.graph.initializer[-1].name = name
    return model


def conv(codes, scale, attributes="", opset=17, **zero_point):
    parameters = "codes, scale, zero" if zero_point else "codes, scale"
    return graph(
        f"g (float[1,4,8,8] x) => (float[1,8,6,6] y) {{"
        f" w = DequantizeLinear <{attributes}> ({parameters}) y = Conv (x, w) }}",
        opset,
        codes=codes,
        scale=scale,
        **zero_point,
    )


def matmul(codes, scale, attributes="", layer="MatMul"):
    return graph(
        f"g (float[2,32] x) => (float[2,64] y) {{"
        f" w = DequantizeLinear <{attributes}> (codes, scale) y = {layer} (x, w) }}",
        21,
        codes=codes,
        scale=scale,
    )


def w8a8(zero_point, weight=TensorProto.INT8, layer="Conv", attributes=""):
    """A layer with quantized weight and activation."""
    x, y, shape = ("1,4,8,8", "1,8,6,6", (8, 4, 3, 3)) if layer == "Conv" else ("2,32", "2,64", (32, 64))
    return graph(
        f"g (float[{x}] x) => (float[{y}] y) {{ q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
        f" w = DequantizeLinear <{attributes}> (codes, scale) y = {layer} (d, w) }}",
        21,
        codes=ones(weight, *shape),
        scale=scales((2, 64)) if "block" in attributes else np.float32(0.1),
        s=np.float32(0.1),
        z=zero_point,
    )


def between(first, second, opset=17, **tensors):
    """Two nodes around a tensor `t`, from (1, 4) floats to (1, 4) floats."""
    return graph(f"g (float[1,4] x) => (float[1,4] y) {{ a = Relu (x) t = {first} y = {second} }}", opset, **tensors)


def quantized(quantize="(x, s, z)", dequantize="(q, s, z)", **tensors):
    text = f"g (float[2,4] x) => (float[2,4] y) {{ q = QuantizeLinear {quantize} y = DequantizeLinear {dequantize} }}"
    return graph(text, 21, **{"s": np.float32(0.1), "z": np.int8(0)} | tensors)


def function(calls, body="q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"):
    """Calls of a function ``mine.F``, which quantizes."""
    constants = "s = Constant <value_float = 0.1> () z = Constant <value = int8 {0}> ()"
    return graph(
        f"g (float[2,4] x) => (float[2,4] y) {{ {calls} }}\n"
        f'<domain: "mine", opset_import: ["" : 17]> F (x) => (y) {{ {constants} {body} }}'
    )


def attend(dtype, inputs="q, k, v"):
    return graph(
        f"g ({dtype}[1,2,49,32] q, {dtype}[1,2,49,32] k, {dtype}[1,2,49,32] v) => ({dtype}[1,2,49,32] y)"
        f" {{ y = Attention ({inputs}) }}",
        23,
    )


def uint8_image(nodes):
    return graph(f"g (uint8[1,8,8,4] x) => (float[1,4,8,8] y) {{ {nodes} }}")


INT8, UINT8, INT4 = TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4
FP8, FP4, BF16 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1, TensorProto.BFLOAT16
WEIGHT = ones(INT8, 8, 4, 3, 3)
SCALE = np.float32(0.01)
IF = """g (float[4] x, bool c) => (float[4] y) {{
    y = If (c) <then_branch = t () => (float[4] a) {{ b = Cast <to = {}> (x) a = Cast <to = 1> (b) }},
                else_branch = e () => (float[4] d) {{ d = Relu (x) }}>
}}"""


@dataclass
class Pattern:
    """A graph that breaks one rule, beside one that doesn't.

    `silent` says why the rule goes beyond what TensorRT-RTX says itself.
    """

    name: str
    rule: str
    refused: onnx.ModelProto
    accepted: onnx.ModelProto
    capability: str = "8.6"
    silent: str = ""


CLIPPED = "computes int8, so that what is above half of the range is clipped"
FLOAT = "computed, but not by an integer kernel"

PATTERNS = [
    Pattern("a zero-point", "zero_points", conv(WEIGHT, SCALE, zero=np.int8(3)), conv(WEIGHT, SCALE, zero=np.int8(0))),
    Pattern(
        "a zero-point of one channel",
        "zero_points",
        conv(WEIGHT, scales(8), "axis = 0", zero=np.array([0] * 7 + [1], np.int8)),
        conv(WEIGHT, scales(8), "axis = 0", zero=np.zeros(8, np.int8)),
    ),
    Pattern(
        "one zero-point for all channels",
        "zero_points",
        conv(WEIGHT, scales(8), "axis = 0", zero=np.int8(0)),
        conv(WEIGHT, scales(8), "axis = 0"),
    ),
    Pattern("an activation's zero-point", "zero_points", w8a8(np.int8(3)), w8a8(np.int8(0))),
    Pattern("an absent zero-point", "zero_points", quantized(dequantize='(q, s, "")'), quantized(dequantize="(q, s)")),
    Pattern(
        "a computed zero-point",
        "zero_points",
        graph(
            "g (float[2,4] x, int8 z) => (float[2,4] y)"
            " { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }",
            s=SCALE,
        ),
        graph(
            "g (float[2,4] x) => (float[2,4] y)"
            " { z = Identity (z0) q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }",
            s=SCALE,
            z0=np.int8(0),
        ),
    ),
    Pattern("a uint8 weight", "codes", conv(ones(UINT8, 8, 4, 3, 3), SCALE, zero=np.uint8(0)), conv(WEIGHT, SCALE)),
    Pattern(
        "a uint8 weight in opset 10",
        "codes",
        *(conv(ones(dtype, 8, 4, 3, 3), SCALE, opset=10, zero=zero(dtype)) for dtype in (UINT8, INT8)),
    ),
    Pattern("a uint8 activation", "codes", w8a8(np.uint8(0)), w8a8(np.int8(0)), silent=CLIPPED),
    Pattern("a default zero-point", "codes", quantized("(x, s)", "(q, s)"), quantized("(x, s, z)"), silent=CLIPPED),
    Pattern(
        "uint8 by attribute",
        "codes",
        quantized("<output_dtype = 2> (x, s)", "(q, s)"),
        quantized("<output_dtype = 3> (x, s)", "(q, s)"),
    ),
    Pattern("an int16 activation", "codes", quantized(z=np.int16(0)), quantized(z=zero(INT4))),
    *(
        Pattern(
            f"a weight of type {name}",
            "codes",
            conv(ones(getattr(TensorProto, name), 8, 4, 3, 3), SCALE, opset=21),
            conv(ones(INT4, 8, 4, 3, 3), SCALE, opset=21),
        )
        for name in ("UINT4", "INT16", "UINT16", "INT32", "FLOAT8E5M2", "FLOAT8E4M3FNUZ")
    ),
    Pattern(
        "an int32 bias",
        "codes",
        graph(
            "g (float[1,4,8,8] x) => (float[1,8,6,6] y)"
            " { w = DequantizeLinear (codes, s) b = DequantizeLinear (bias, s) y = Conv (x, w, b) }",
            codes=WEIGHT,
            s=SCALE,
            bias=np.ones(8, np.int32),
        ),
        graph(
            "g (float[1,4,8,8] x) => (float[1,8,6,6] y) { w = DequantizeLinear (codes, s) y = Conv (x, w, b) }",
            codes=WEIGHT,
            s=SCALE,
            b=np.ones(8, np.float32),
        ),
    ),
    Pattern(
        "codes at an input",
        "codes",
        graph("g (uint8[1,4] x) => (float[1,4] y) { y = DequantizeLinear (x, s, z) }", s=SCALE, z=np.uint8(0)),
        graph("g (int8[1,4] x) => (float[1,4] y) { y = DequantizeLinear (x, s, z) }", s=SCALE, z=np.int8(0)),
    ),
    Pattern("a scale of 0", "scales", conv(WEIGHT, np.float32(0)), conv(WEIGHT, np.float32(1e-12))),
    Pattern("a negative scale", "scales", conv(WEIGHT, np.float32(-0.01)), conv(WEIGHT, SCALE)),
    Pattern("a scale that is NaN", "scales", conv(WEIGHT, np.float32(np.nan)), conv(WEIGHT, SCALE)),
    Pattern("an infinite scale", "scales", conv(WEIGHT, np.float32(np.inf)), conv(WEIGHT, SCALE), silent="makes NaN"),
    Pattern(
        "a channel's scale of 0",
        "scales",
        conv(WEIGHT, np.array([0.1] * 7 + [0], np.float32), "axis = 0"),
        conv(WEIGHT, scales(8), "axis = 0"),
    ),
    Pattern(
        "a float16 scale that underflows",
        "scales",
        *(
            graph(
                "g (float16[1,4,8,8] x) => (float16[1,8,6,6] y) { w = DequantizeLinear (codes, s) y = Conv (x, w) }",
                19,
                codes=WEIGHT,
                s=np.float16(value),
            )
            for value in (1e-9, 2.0**-20)
        ),
    ),
    Pattern("scales of another axis", "scales", conv(WEIGHT, scales(8)), conv(WEIGHT, scales(8), "axis = -4")),
    Pattern(
        "a scale of two dimensions",
        "scales",
        quantized(s=scales((1, 1)), z=np.zeros((1, 1), np.int8)),
        quantized(s=scales(1), z=np.zeros(1, np.int8)),
    ),
    Pattern(
        "blocks of a convolution",
        "blocks",
        conv(WEIGHT, scales((8, 2, 3, 3)), "axis = 1, block_size = 2", 21),
        matmul(ones(INT8, 32, 64), scales((2, 64)), "axis = 0, block_size = 16"),
    ),
    Pattern(
        "int4 blocks of a convolution",
        "blocks",
        conv(ones(INT4, 8, 4, 3, 3), scales((2, 4, 3, 3)), "axis = 0, block_size = 4", 21),
        matmul(ones(INT4, 32, 64), scales((2, 64)), "axis = 0, block_size = 16", "Gemm"),
    ),
    Pattern(
        "an incomplete block",
        "blocks",
        matmul(ones(INT8, 32, 64), scales((5, 64)), "axis = 0, block_size = 7"),
        matmul(ones(INT8, 32, 64), scales((4, 64)), "axis = 0, block_size = 8"),
    ),
    Pattern(
        "a convolution's input channels",
        "weight_axes",
        conv(WEIGHT, scales(4), "axis = 1"),
        conv(WEIGHT, scales(8), "axis = 0"),
        silent=FLOAT,
    ),
    Pattern(
        "a MatMul's input channels",
        "weight_axes",
        matmul(ones(INT8, 32, 64), scales(32), "axis = 0"),
        matmul(ones(INT8, 32, 64), scales(64), "axis = 1"),
        silent=FLOAT,
    ),
    Pattern(
        "a transposed Gemm's input channels",
        "weight_axes",
        matmul(ones(INT8, 64, 32), scales(32), "axis = 1", "Gemm <transB = 1>"),
        matmul(ones(INT8, 64, 32), scales(64), "axis = 0", "Gemm <transB = 1>"),
        silent=FLOAT,
    ),
    Pattern(
        "a flattened matrix's input channels",
        "weight_axes",
        *(
            graph(
                f"g (float[2,32] x) => (float[2,64] y) {{ v = DequantizeLinear <axis = {axis}> (codes, s)"
                " w = Flatten (v) y = MatMul (x, w) }",
                codes=ones(INT8, 32, 64),
                s=scales((32, 64)[axis]),
            )
            for axis in (0, 1)
        ),
        silent=FLOAT,
    ),
    *(
        Pattern(
            f"a {name}'s input channels",
            "weight_axes",
            *(
                graph(
                    f"g (float[1,4,8,8] x) => (float[1,8,N,M] y) {{ w0 = DequantizeLinear <axis = {axis}> (codes, s)"
                    f" {nodes} }}",
                    codes=ones(INT8, 4, 8, 3, 3),
                    s=scales((4, 8)[axis]),
                )
                for axis in (0, 1)
            ),
            silent=FLOAT,
        )
        for name, nodes in (
            ("ConvTranspose", "y = ConvTranspose (x, w0)"),
            ("transposed weight", "w = Transpose <perm = [1, 0, 2, 3]> (w0) y = Conv (x, w)"),
        )
    ),
    *(
        Pattern(
            f"{layer} of int4 and int8",
            "mixed_codes",
            w8a8(np.int8(0), INT4, layer),
            w8a8(np.int8(0), INT8, layer),
        )
        for layer in ("Conv", "MatMul", "Gemm")
    ),
    Pattern(
        "MatMul of int4 and int8 without blocks",
        "mixed_codes",
        w8a8(np.int8(0), INT4, "MatMul"),
        w8a8(np.int8(0), INT4, "MatMul", "axis = 0, block_size = 16"),
    ),
    Pattern(
        "an odd number of int4",
        "packed_codes",
        *(
            graph(
                f"g (float[2,33] x) => (float[2,{channels}] y) {{ w = DequantizeLinear <axis = 1> (codes, s)"
                " y = MatMul (x, w) }",
                21,
                codes=ones(INT4, 33, channels),
                s=scales(channels),
            )
            for channels in (31, 32)
        ),
    ),
    Pattern("Conv of int8 and float8", "mixed_codes", w8a8(zero(FP8)), w8a8(zero(FP8), FP8), "8.9"),
    Pattern(
        "a reshaped int8 constant",
        "quantized_constants",
        *(
            graph(
                f"g (float[1,4,8,8] x) => (float[1,8,6,6] y) {{ {nodes} y = Conv (x, w) }}",
                codes=ones(INT8, 8, 36),
                s=SCALE,
                shape=np.array([8, 4, 3, 3]),
            )
            for nodes in (
                "t = Reshape (codes, shape) w = DequantizeLinear (t, s)",
                "t = DequantizeLinear (codes, s) w = Reshape (t, shape)",
            )
        ),
    ),
    Pattern(
        "an int8 constant that is cast",
        "quantized_constants",
        between("Cast <to = 1> (c)", "Add (a, t)", c=np.ones(4, np.int8)),
        between("DequantizeLinear (c, s)", "Add (a, t)", c=np.ones(4, np.int8), s=SCALE),
    ),
    Pattern("int8 copied to an output", "quantized_constants", *(
        graph("g (float[2] x) => (float[2] y, int8[2] c) { y = Relu (x) c = " + made + " }", c0=np.ones(2, np.int8))
        for made in ("Identity (c0)", "Cast <to = 3> (x)")
    )),
    Pattern(
        "a cast to float8",
        "quantized_casts",
        between("Cast <to = 17> (a)", "Cast <to = 1> (t)", 21),
        between("QuantizeLinear (a, s, z)", "DequantizeLinear (t, s, z)", 21, s=SCALE, z=zero(FP8)),
        "8.9",
    ),
    Pattern("a cast to int4", "quantized_casts", *(
        between(f"Cast <to = {to}> (a)", "Cast <to = 1> (t)", 21) for to in (INT4, INT8)
    )),
    *(
        Pattern(f"a cast to {name}", "dtypes", *(
            between(f"Cast <to = {to}> (a)", "Cast <to = 1> (t)", 21) for to in (getattr(TensorProto, name), accepted)
        ))
        for name, accepted in (
            ("INT16", INT8),
            ("UINT16", TensorProto.INT32),
            ("UINT32", TensorProto.INT64),
            ("FLOAT8E5M2", BF16),
        )
    ),
    *(
        Pattern(f"an input of type {refused}", "dtypes", *(
            graph(f"g ({dtype}[2] x) => ({dtype}[2] y) {{ y = Identity (x) }}", 21) for dtype in (refused, accepted)
        ))
        for refused, accepted in (("int16", "int8"), ("uint32", "int64"), ("string", "double"), ("uint4", "int4"))
    ),
    Pattern(
        "an unused constant of type uint16", "dtypes", *(
            between("Neg (a)", "Neg (t)", unused=np.ones(4, dtype)) for dtype in (np.uint16, np.uint8)
        )
    ),
    Pattern(
        "a cast to uint8",
        "boundary_dtypes",
        between("Cast <to = 2> (a)", "Cast <to = 1> (t)"),
        graph("g (float[1,4] x) => (uint8[1,4] y) { y = Cast <to = 2> (x) }"),
    ),
    Pattern(
        "an image that is transposed before it is cast",
        "boundary_dtypes",
        uint8_image("t = Transpose <perm = [0, 3, 1, 2]> (x) y = Cast <to = 1> (t)"),
        uint8_image("t = Cast <to = 1> (x) y = Transpose <perm = [0, 3, 1, 2]> (t)"),
    ),
    Pattern(
        "an image that is copied before it is cast",
        "boundary_dtypes",
        uint8_image("t = Identity (x) u = Cast <to = 1> (t) y = Transpose <perm = [0, 3, 1, 2]> (u)"),
        graph("g (uint8[2] x) => (uint8[2] y) { y = Identity (x) }"),
    ),
    Pattern("a cast to uint8 in a branch", "boundary_dtypes", graph(IF.format(2)), graph(IF.format(3))),
    Pattern(
        "a cast to uint8 in a function",
        "boundary_dtypes",
        function("y = mine.F (x)", "a = Relu (x) t = Cast <to = 2> (a) y = Cast <to = 1> (t)"),
        function("y = mine.F (x)", "a = Relu (x) t = Cast <to = 3> (a) y = Cast <to = 1> (t)"),
    ),
    Pattern(
        "a float constant made uint8",
        "boundary_dtypes",
        between("ConstantOfShape <value = uint8[1] {3}> (n)", "Cast <to = 1> (t)", n=np.array([1, 4])),
        between("Gather <axis = 0> (c, i)", "Cast <to = 1> (t)", c=np.ones((2, 4), np.uint8), i=np.array([1])),
    ),
    Pattern(
        "QLinearConv",
        "operators",
        graph(
            "g (int8[1,4,8,8] x) => (int8[1,8,6,6] y) { y = QLinearConv (x, s, z, w, s, z, s, z) }",
            w=WEIGHT,
            s=SCALE,
            z=np.int8(0),
        ),
        w8a8(np.int8(0)),
    ),
    Pattern(
        "MatMulInteger",
        "operators",
        graph("g (int8[2,4] x, int8[4,2] w) => (int32[2,2] y) { y = MatMulInteger (x, w) }"),
        graph("g (float[2,4] x, float[4,2] w) => (float[2,2] y) { y = MatMul (x, w) }"),
    ),
    Pattern(
        "a range that is computed",
        "operators",
        graph(
            "g (float[2,4] x) => (float[2,4] y)"
            " { t = Sigmoid (x) q, s, z = DynamicQuantizeLinear (t) u = Cast <to = 1> (s) y = Mul (t, u) }"
        ),
        graph(
            "g (float[2,4] x) => (float[2,4] y) { m = ReduceMax <keepdims = 0> (x) s = Div (m, c)"
            " q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }",
            c=np.float32(127),
            z=np.int8(0),
        ),
    ),
    Pattern("Attention in float", "operators", attend("float"), attend("float16")),
    Pattern(
        "float MatMul on Turing",
        "operators",
        *(
            graph(f"g ({dtype}[2,4] x, {dtype}[4,2] w) => ({dtype}[2,2] y) {{ y = MatMul (x, w) }}")
            for dtype in ("float", "float16")
        ),
        "7.5",
    ),
    *(
        Pattern(
            f"com.microsoft.{refused}",
            "custom_operators",
            graph(f"g (float[2,4] x) => (float[2,4] y) {{ y = com.microsoft.{refused} }}", b=np.ones(4, np.float32)),
            graph(f"g (float[2,4] x) => (float[2,4] y) {{ y = {accepted} }}", 20, b=np.ones(4, np.float32)),
        )
        for refused, accepted in (
            ("BiasGelu (x, b)", "Gelu (x)"),
            ("QuickGelu (x)", "com.microsoft.Gelu (x)"),
            ("SkipLayerNormalization (x, x, b)", "LayerNormalization (x, b)"),
        )
    ),
    Pattern(
        "a function without a body",
        "custom_operators",
        function("y = mine.G (x)"),
        function("y = mine.F (x)"),
    ),
    Pattern(
        "a function that quantizes, called twice",
        "layer_names",
        function("t = mine.F (x) y = mine.F (t)"),
        function("t = mine.F (x) y = mine.F (t)", "t = Round (x) c = Cast <to = 3> (t) y = Cast <to = 1> (c)"),
    ),
    Pattern(
        "a function that quantizes a tensor called as one outside",
        "layer_names",
        *(
            function(
                "c = Constant <value_float = 0.1> () n = Constant <value = int8 {0}> ()"
                f" {name} = QuantizeLinear (x, c, n) t = Cast <to = 1> ({name}) y = mine.F (t)"
            )
            for name in ("q", "outside")
        ),
    ),
    Pattern("int4 on Turing", "compute_capability", *(
        conv(ones(dtype, 8, 4, 3, 3), SCALE, opset=21) for dtype in (INT4, INT8)
    ), "7.5"),
    Pattern("float8 on Ampere", "compute_capability", *(
        conv(ones(dtype, 8, 4, 3, 3), SCALE, opset=21) for dtype in (FP8, INT4)
    )),
    Pattern("float8 activations on Ampere", "compute_capability", w8a8(zero(FP8), FP8), w8a8(np.int8(0))),
    Pattern("float4 on Ada", "compute_capability", *(
        conv(ones(dtype, 8, 4, 3, 3), SCALE, opset=23) for dtype in (FP4, FP8)
    ), "8.9"),
    Pattern("bfloat16 on Turing", "compute_capability", *(
        between(f"Cast <to = {to}> (a)", "Cast <to = 1> (t)") for to in (BF16, TensorProto.FLOAT16)
    ), "7.5"),
    *(
        Pattern(f"opset {refused}", "opset", *(
            between("Neg (a)", "Neg (t)", opset) for opset in (refused, accepted)
        ), silent="read, but by importers that were never tested with it")
        for refused, accepted in ((26, 25), (8, 9))
    ),
]  # fmt: skip
