"""What is made for TensorRT is accepted by TensorRT: the real parser and the ahead-of-time builder of TensorRT-RTX."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxquant import rewrite
from onnxquant.deploy.build import build_engine
from onnxquant.zoo import load_zoo
from tests.fixtures import load_fixture, one_of_each_family, with_batch
from tests.graphs import attention, images

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")

ZOO = load_zoo()
DEMO = Path(__file__).parents[1] / "models" / "demo"


def build(proto: onnx.ModelProto, shape: tuple[int, ...]) -> bytes:
    """The plan for a GPU of compute capability 8.6; the parser's errors fail the test."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(proto.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, (1, *shape), (4, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, "the builder refused the network"
    return bytes(plan)


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_rewritten_hybrid_parses_and_builds(target, bits):
    options = [f"quantize_conv_weights.bits={bits}", f"quantize_softmax_log2.bits={bits}"]
    result = rewrite(attention(), calibration=images(32), target=target, overrides=options, min_sqnr=0)
    assert build(result.model, (3, 8, 8))


def test_the_rewritten_demo_parses_and_builds():
    result = rewrite(DEMO / "mobilevit_xxs_digits.onnx", calibration=DEMO / "digits_train.npz", target="tensorrt")
    assert build(result.model, (3, 64, 64))


def test_the_asymmetric_form_for_onnx_runtime_is_what_the_parser_refuses():
    result = rewrite(attention(), calibration=images(32), target="onnxruntime")
    with pytest.raises(AssertionError, match=r"UINT8|zero point"):
        build(result.model, (3, 8, 8))


def test_all_zero_channels_build_too():
    proto = attention()
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0] = 0
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, proto.graph.initializer[0].name))
    assert np.all(weight[0] == 0)
    assert build(rewrite(proto, target="tensorrt").model, (3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["efficientquant", "w8a8"])  # the others are parts of these
@pytest.mark.parametrize(("name", "exporter"), one_of_each_family())
def test_every_family_parses_and_builds_with_dynamic_and_static_batch(name, exporter, recipe):
    size = ZOO[name].preprocessing.input_size
    data = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)
    proto, dynamic = load_fixture(name, exporter), exporter == "torchscript"
    result = rewrite(proto, recipe=recipe, calibration=data, target="tensorrt", min_sqnr=-math.inf)
    model = result.model if dynamic else with_batch(result.model, 1)
    engine = build_engine(model, compute_capabilities=("8.6", "8.9", "12.0"))
    assert engine.plan
    assert bool(engine.profile) == dynamic
