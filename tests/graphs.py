"""Graphs that tests share, as ONNX text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper, parser


def parse(text: str, opset: int = 17, **weights: NDArray[Any]) -> onnx.ModelProto:
    """A model from the text of its graph, with initializers given as arrays."""
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    onnx.checker.check_model(proto)
    return proto


def run(proto: onnx.ModelProto, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    """The outputs of optimised ONNX Runtime."""
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def initializers(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def attention(opset: int = 17, channels: int = 8) -> onnx.ModelProto:
    """A conv, one attention head over its pixels, a conv and a classifier with a final Softmax: the smallest hybrid."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    c = channels
    return parse(
        """
        hybrid (float[N, 3, 8, 8] image) => (float[N, 10] probabilities) {
            stem = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (image, stem_weight, stem_bias)
            act = Relu (stem)
            flat = Reshape (act, to_tokens)
            tokens = Transpose <perm = [0, 2, 1]> (flat)
            q = MatMul (tokens, q_weight)
            k = MatMul (tokens, k_weight)
            v = MatMul (tokens, v_weight)
            kt = Transpose <perm = [0, 2, 1]> (k)
            scores = MatMul (q, kt)
            probs = Softmax <axis = -1> (scores)
            mixed = MatMul (probs, v)
            out = MatMul (mixed, proj_weight)
            back = Transpose <perm = [0, 2, 1]> (out)
            map = Reshape (back, to_map)
            head = Conv <kernel_shape = [1, 1]> (map, head_weight)
            pooled = GlobalAveragePool (head)
            features = Flatten <axis = 1> (pooled)
            logits = Gemm <transB = 1> (features, fc_weight, fc_bias)
            probabilities = Softmax <axis = -1> (logits)
        }
        """,
        opset,
        stem_weight=normal(c, 3, 3, 3),
        stem_bias=normal(c),
        to_tokens=np.array([0, c, 16], np.int64),
        to_map=np.array([0, c, 4, 4], np.int64),
        q_weight=3 * normal(c, c),
        k_weight=3 * normal(c, c),
        v_weight=normal(c, c),
        proj_weight=normal(c, c),
        head_weight=normal(2 * c, c, 1, 1),
        fc_weight=3 * normal(10, 2 * c),
        fc_bias=normal(10),
    )


def images(count: int = 8, seed: int = 1) -> NDArray[np.float32]:
    """Inputs for `attention`: (count, 3, 8, 8)."""
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def group_norm(gamma: NDArray[np.float32]) -> onnx.ModelProto:
    """GroupNorm of one group as exporters write it (MobileViTv2), its scale `gamma` (4,), and a layer behind it.

    ``x``, float32 (N, 4, 6, 6), through ``h``, what the norm computes, to ``y``, (N, 5, 6, 6).
    """
    rng = np.random.default_rng(4)
    return parse(
        """g (float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y) {
            groups = Reshape (x, to_groups)
            n = InstanceNormalization (groups, one, zero)
            back = Reshape (n, to_map)
            scaled = Mul (back, gamma)
            h = Add (scaled, beta)
            y = Conv (h, w)
        }""",
        to_groups=np.array([0, 1, -1]),
        to_map=np.array([0, 4, 6, 6]),
        one=np.ones(1, np.float32),
        zero=np.zeros(1, np.float32),
        gamma=gamma[:, None, None],
        beta=rng.standard_normal((4, 1, 1)).astype(np.float32),
        w=rng.standard_normal((5, 4, 1, 1)).astype(np.float32),
    )
