"""A pass is a stage that drops into a graphsurgeon pipeline."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnxquant.passes.fold_batch_norm import FoldBatchNorm
from onnxquant.passes.quantize_conv_weights import QuantizeConvWeights
from onnxquant.passes.quantize_softmax_log2 import QuantizeSoftmaxLog2

from onnxquant.errors import OnnxquantError
from tests.graphs import attention, images, op_types, parse, run


def test_stages_follow_each_other_on_one_graph():
    graph = gs.import_onnx(attention())
    QuantizeConvWeights(bits=8)(graph, images(32))
    QuantizeSoftmaxLog2(bits=8)(graph, images(32))
    result = gs.export_onnx(graph)
    onnx.checker.check_model(result, full_check=True)
    assert op_types(result).count("DequantizeLinear") == 2
    assert op_types(result).count("Log2QuantizeLinear") == 1
    x = images()
    assert np.abs(run(result, image=x)[0] - run(attention(), image=x)[0]).max() < 0.02


def test_a_stage_for_tensorrt_leaves_no_zero_points():
    result = gs.export_onnx(QuantizeConvWeights()(gs.import_onnx(attention()), target="tensorrt"))
    codes = [tensor for tensor in result.graph.initializer if tensor.name.endswith("_zero_point")]
    assert codes
    assert not any(onnx.numpy_helper.to_array(tensor).any() for tensor in codes)


def test_a_stage_that_only_rewrites_needs_no_plan():
    proto = parse(
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) {
            h = Conv (x, w)
            y = BatchNormalization (h, one, one, one, one)
        }""",
        w=np.full((1, 1, 1, 1), 3, np.float32),
        one=np.ones(1, np.float32),
    )
    graph = FoldBatchNorm()(gs.import_onnx(proto))
    x = np.ones((1, 1, 4, 4), np.float32)
    assert op_types(gs.export_onnx(graph)) == ["Conv"]
    np.testing.assert_allclose(run(gs.export_onnx(graph), x=x)[0], run(proto, x=x)[0], rtol=1e-5)


def test_a_graph_that_is_not_sorted_and_has_no_names_is_taken():
    graph = gs.import_onnx(attention())
    graph.nodes.reverse()
    for node in graph.nodes:
        node.name = ""
    onnx.checker.check_model(gs.export_onnx(QuantizeConvWeights()(graph)), full_check=True)


def test_an_old_opset_is_refused_with_the_way_out():
    proto = parse(
        "g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { y = Conv (x, w) }", 11, w=np.ones((1, 1, 1, 1), np.float32)
    )
    with pytest.raises(OnnxquantError, match=r"opset 11 .*onnxquant\.load"):
        QuantizeConvWeights()(gs.import_onnx(proto))
