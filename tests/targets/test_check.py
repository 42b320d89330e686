"""What onnxquant refuses for a target, the real parser and builder of TensorRT-RTX refuse, and the other way."""

import numpy as np
import onnx
import pytest

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from onnxquant.targets import load_target, target_names
from onnxquant.targets.check import RULES, check_target, require_accepted
from onnxquant.targets.inline import inline_functions
from tests.fixtures import load_fixture
from tests.graphs import attention
from tests.scripts import PRELUDE, run_script
from tests.targets.patterns import IF, INT4, PATTERNS, attend, between, conv, function, graph, matmul, ones

RTX = load_target("tensorrt-rtx")
FAMILIES = [
    "mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1", "efficientformerv2_s0", "mobile_former_26m", "deit_t",
    "levit_128s", "edgenext_xx_small",
]  # fmt: skip


def tensorrt_rtx():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")


def takes(model, capability):
    """Whether TensorRT-RTX parses the model and builds an engine for a GPU."""
    trt = tensorrt_rtx()
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return False
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_the_refused_pattern_is_refused_by_its_rule_and_by_tensorrt(pattern):
    refusals = check_target(pattern.refused, RTX, pattern.capability)
    assert {refusal.rule for refusal in refusals} == {pattern.rule}
    assert takes(pattern.refused, pattern.capability) == bool(pattern.silent)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_its_neighbour_is_accepted_by_both(pattern):
    assert check_target(pattern.accepted, RTX, pattern.capability) == []
    assert takes(pattern.accepted, pattern.capability)


def test_every_rule_has_a_pattern():
    assert {pattern.rule for pattern in PATTERNS} == RULES.keys() - {"attention_inputs", "session"}


def test_the_operators_refused_are_those_that_the_parser_lacks():
    trt = tensorrt_rtx()
    logger = trt.Logger(trt.Logger.ERROR)
    parser = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
    always = {name for entry in RTX.refused if not (entry.dtype or entry.below) for name in entry.operators}
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert always == {name for name in standard if not parser.supports_operator(name)}


def test_attention_of_one_tensor_with_itself_is_refused_since_it_crashes_the_builder(tmp_path):
    tensorrt_rtx()
    model = attend("float16", "q, q, v")
    onnx.save(model, tmp_path / "model.onnx")
    script = "import onnx, tests.targets.test_check as t; print(t.takes(onnx.load(sys.argv[1]), '8.6'))"
    done = run_script(PRELUDE + script, tmp_path / "model.onnx", check=False)
    assert done.returncode < 0, "the builder no longer crashes: the rule can go"
    assert [refusal.rule for refusal in check_target(model, RTX)] == ["attention_inputs"]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", FAMILIES)
def test_float_models_are_accepted(name, exporter):
    assert check_target(load_fixture(name, exporter), RTX, "8.6") == []


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt-8.6", "portable"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rewritten_models_are_accepted(name, target):
    model = rewrite(load_fixture(name, "torchscript"), target=target).model
    if not load_target(target).functions:
        model = inline_functions(model)
    assert check_target(model, load_target(target), "8.6") == []


def test_what_depends_on_the_gpu_is_left_out_without_one():
    model = conv(ones(INT4, 8, 4, 3, 3), np.float32(0.01), opset=21)
    assert check_target(model, RTX) == []
    assert check_target(model, RTX, "8.0") == []
    assert {refusal.rule for refusal in check_target(model, RTX, "7.5")} == {"compute_capability"}


@pytest.mark.parametrize("text", ["9.0", "86", "8.6.1", "sm86", ""])
def test_a_compute_capability_that_the_target_lacks_is_an_error(text):
    with pytest.raises(OnnxquantError, match=f"^--compute-capability {text}: "):
        check_target(attention(), RTX, text)


def test_every_refusal_names_node_and_tensor():
    model = matmul(np.ones((32, 64), np.uint8), np.zeros(64, np.float32), "axis = 1")
    model.graph.node[0].name = "weight"
    refusals = [(refusal.node, refusal.tensor, refusal.rule) for refusal in check_target(model, RTX)]
    assert refusals == [("weight", "codes", "codes"), ("weight", "scale", "scales")]


def test_an_unnamed_node_goes_by_its_output():
    (refusal,) = check_target(between("Cast <to = 2> (a)", "Cast <to = 1> (t)"), RTX)
    assert refusal.node == "Cast of t"


def test_nodes_of_functions_are_named_with_their_function():
    body = "a = Relu (x) [inner] t = Cast <to = 2> (a) y = Cast <to = 1> (t)"
    refusals = check_target(function("t = mine.F (x) y = mine.F (t)", body), RTX)
    assert [refusal.node.split("__")[0] for refusal in refusals] == ["F/inner", "F/inner"]


def test_nodes_of_branches_are_found():
    (refusal,) = check_target(graph(IF.format(5)), RTX)
    assert (refusal.tensor, refusal.rule) == ("b", "dtypes")


def test_a_value_in_an_outer_graph_is_found():
    model = graph(
        """g (float[4] x, bool c) => (float[4] y) {
            y = If (c) <then_branch = t () => (float[4] a) {
                            q = QuantizeLinear (x, s, z) a = DequantizeLinear (q, s, z) },
                        else_branch = e () => (float[4] d) { d = Relu (x) }>
        }""",
        s=np.float32(0.1),
        z=np.int8(1),
    )
    assert [refusal.rule for refusal in check_target(model, RTX)] == ["zero_points", "zero_points"]


def test_large_constants_are_looked_at_too():
    count = 2**18 + 1
    values = np.ones(count, np.float32)
    values[-1] = 0
    model = graph(
        f"g (float[1,{count}] x) => (float[1,{count}] y) {{ w = DequantizeLinear <axis = 0> (c, s) y = Add (x, w) }}",
        c=np.ones(count, np.int8),
        s=values,
    )
    assert [refusal.rule for refusal in check_target(model, RTX)] == ["scales"]


def test_the_model_is_not_changed():
    model = rewrite(attention(), target="tensorrt").model
    before = model.SerializeToString(deterministic=True)
    check_target(model, RTX)
    assert model.SerializeToString(deterministic=True) == before


def test_a_model_for_onnx_runtime_is_refused_for_tensorrt_in_one_line():
    model = rewrite(attention(), target="onnxruntime").model
    require_accepted(model, load_target("onnxruntime"), "model.onnx")
    with pytest.raises(OnnxquantError, match=r"^model\.onnx: tensorrt-rtx refuses node .*uint8.* \(and \d+ more\)$"):
        require_accepted(model, RTX, "model.onnx")


def test_a_portable_model_is_one_that_onnx_runtime_loads():
    model = between("Cast <to = 16> (a)", "Cast <to = 1> (t)")  # ONNX Runtime has no bfloat16 Relu on CPUs
    model.graph.node[0].CopyFrom(onnx.helper.make_node("Cast", ["x"], ["b"], to=onnx.TensorProto.BFLOAT16))
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Relu", ["b"], ["t"]))
    assert check_target(model, load_target("tensorrt")) == []
    (refusal,) = check_target(model, load_target("portable"))
    assert refusal.rule == "session"
    assert "Relu" in refusal.message


def test_an_invalid_model_is_an_error():
    with pytest.raises(OnnxquantError, match="not a valid ONNX graph"):
        check_target(function("y = mine.F (x)", "y = mine.F (x)"), RTX)


@pytest.mark.parametrize("name", target_names())
class TestTargets:
    def test_its_rules_and_types_exist(self, name):
        target = load_target(name)
        assert set(target.rules) <= RULES.keys()
        types = {*target.codes, *target.dtypes, *target.boundary_dtypes, *target.minimum_compute_capability}
        types |= {entry.dtype for entry in target.refused if entry.dtype}
        assert types <= {key.lower() for key in onnx.TensorProto.DataType.DESCRIPTOR.values_by_name}

    def test_its_refused_operators_exist_and_are_listed_once(self, name):
        always = [op for entry in load_target(name).refused if not entry.dtype for op in entry.operators]
        assert len(always) == len(set(always))
        assert all(onnx.defs.has(op) for op in always)


def test_a_target_takes_what_its_description_says():
    assert load_target("onnxruntime").unsigned
    assert not load_target("tensorrt").unsigned
    assert not load_target("tensorrt-8.6").functions
    assert "int4" in load_target("tensorrt-10").codes
    assert "int4" not in load_target("tensorrt-8.6").codes


def test_what_tensorrt_takes_is_no_more_than_what_10_and_11_and_rtx_take():
    common = load_target("tensorrt")
    for name in ("tensorrt-10", "tensorrt-11", "tensorrt-rtx"):
        target = load_target(name)
        assert set(common.codes) <= set(target.codes)
        assert common.opsets[0] >= target.opsets[0]
        assert common.opsets[1] <= target.opsets[1]
        assert set(target.refused) <= set(common.refused)
        assert set(common.custom_operators) <= set(target.custom_operators)
