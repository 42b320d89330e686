"""What TensorRT's parser refuses is an error that names the node of the ONNX model."""

import numpy as np
import pytest
from onnx import parser

from onnxquant.deploy.parse import parse as parse_model
from onnxquant.deploy.tensorrt import find_tensorrt
from onnxquant.deploy.versions import network_flags
from onnxquant.errors import OnnxquantError
from tests.graphs import parse

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")

DEQUANTIZE = """g (float[1, 4] x) => (float[1, 4] y) {
    w = DequantizeLinear (codes, scale, zero_point)
    y = MatMul (x, w)
}"""


@pytest.fixture
def tensorrt():
    found = find_tensorrt("tensorrt-rtx")
    found.logger.clear()
    return found


def refusal(tensorrt, proto):
    network = tensorrt.module.Builder(tensorrt.logger).create_network(network_flags(tensorrt))
    with pytest.raises(OnnxquantError) as raised:
        parse_model(tensorrt, network, proto, None, "a.onnx")
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"a.onnx: {tensorrt.name} ")
    return message.removeprefix(f"a.onnx: {tensorrt.name} ")


def dequantize(zero_point):
    codes = np.zeros((4, 4), zero_point.dtype)
    return parse(DEQUANTIZE, codes=codes, scale=np.float32(1), zero_point=zero_point)


def test_a_node_that_is_refused_is_named_with_what_the_parser_says(tensorrt):
    proto = dequantize(np.array(1, np.int8))
    proto.graph.node[0].name = "dequantize_w"
    assert refusal(tensorrt, proto) == (
        "refuses node dequantize_w (DequantizeLinear): Non-zero zero point is not supported; "
        "rewrite the float model with --target tensorrt"
    )


def test_a_node_without_a_name_is_called_by_its_output(tensorrt):
    assert refusal(tensorrt, dequantize(np.array(0, np.uint8))) == (
        "refuses node of w (DequantizeLinear): Found unsupported input type of UINT8; "
        "rewrite the float model with --target tensorrt"
    )


def test_an_operator_that_is_not_supported_is_said_to_be_and_the_others_are_counted(tensorrt):
    proto = parse("g (float[2, 2, 2] x) => (float[2] y) { a = Det (x) b = Det (x) y = Add (a, b) }")
    assert refusal(tensorrt, proto) == (
        "refuses node of a (Det): the operator is not supported (and 1 more like it); export the model without it"
    )


def test_an_operator_that_nobody_knows_takes_a_plugin(tensorrt):
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    proto.graph.node[0].op_type = "Nonsense"
    assert refusal(tensorrt, proto).startswith("refuses node of y (Nonsense): Plugin not found")


def test_a_node_inside_of_a_function_is_named_and_not_the_one_at_its_place_in_the_graph(tensorrt):
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[2, 2, 2] x) => (float[2] y) { a = Relu (x) y = local.volume (a) }
        <domain: "local", opset_import: ["" : 17]>
        volume (v) => (d) { d = Det (v) }"""
    )
    proto.functions[0].node[0].name = "determinant"
    message = refusal(tensorrt, proto)
    assert "determinant" in message
    assert "(Det)" in message
    assert "Relu" not in message


def test_a_model_that_is_accepted_fills_the_network(tensorrt):
    network = tensorrt.module.Builder(tensorrt.logger).create_network(network_flags(tensorrt))
    parse_model(tensorrt, network, dequantize(np.array(0, np.int8)), None, "a.onnx")
    assert (network.num_inputs, network.num_outputs) == (1, 1)
