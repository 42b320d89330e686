"""Attention's Softmax gets log2 quantizer nodes behind it; a classifier's does not."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import inliner
from onnxquant.passes.quantize_softmax_log2 import QuantizeSoftmaxLog2

from tests.graphs import attention, images, op_types, run


def quantized(proto=None, calibration=None, **options):
    graph = gs.import_onnx(proto or attention())
    QuantizeSoftmaxLog2(**options)(graph, calibration)
    result = gs.export_onnx(graph)
    onnx.checker.check_model(result, full_check=True)
    return result


def test_the_probabilities_reach_the_values_through_int8_codes():
    result = onnx.shape_inference.infer_shapes(quantized())
    nodes = {node.op_type: node for node in result.graph.node}
    assert nodes["Log2QuantizeLinear"].input[0] == "probs"
    types = {value.name: value.type.tensor_type.elem_type for value in result.graph.value_info}
    assert types[nodes["Log2QuantizeLinear"].output[0]] == onnx.TensorProto.INT8
    assert nodes["Log2DequantizeLinear"].output[0] in next(n for n in result.graph.node if n.output[0] == "mixed").input


def test_the_classifiers_softmax_is_left_alone():
    result = quantized()
    assert op_types(result).count("Log2QuantizeLinear") == 1
    assert result.graph.node[-1].op_type == "Softmax"


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.01), (6, 0.03), (4, 0.1)])
def test_the_output_stays_what_it_was(bits, limit):
    x = images(32)
    exact, approximate = run(attention(), image=x)[0], run(quantized(calibration=x, bits=bits), image=x)[0]
    assert np.abs(approximate - exact).max() < limit


def test_inlined_the_functions_leave_standard_operators_only():
    inlined = inliner.inline_local_functions(quantized())
    assert {node.domain for node in inlined.graph.node} == {""}
    x = images()
    np.testing.assert_array_equal(run(inlined, image=x)[0], run(quantized(), image=x)[0])


def test_calibration_narrows_the_range():
    def attributes(result):
        node = next(node for node in result.graph.node if node.op_type == "Log2QuantizeLinear")
        return {attribute.name: attribute.f for attribute in node.attribute}

    without, with_data = attributes(quantized()), attributes(quantized(calibration=0.1 * images()))
    assert (without["minimum"], without["maximum"]) == (0.0, 1.0)
    assert with_data["minimum"] > 1e-4
    assert with_data["maximum"] < 1
    assert with_data["log_scale"] < without["log_scale"]


def test_a_float16_graph_stays_float16():
    proto = attention(opset=19)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            )
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x = images().astype(np.float16)
    result = quantized(onnx.shape_inference.infer_shapes(proto))
    assert run(result, image=x)[0].dtype == np.float16
    assert np.abs(run(result, image=x)[0].astype(np.float32) - run(proto, image=x)[0].astype(np.float32)).max() < 0.02


def test_a_graph_without_attention_is_left_as_it_was():
    proto = attention()
    del proto.graph.node[9].attribute[:]  # the Softmax
    proto.graph.node[9].op_type = "Relu"
    assert op_types(quantized(proto)) == op_types(proto)
