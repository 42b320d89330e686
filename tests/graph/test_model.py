"""Load and save: what comes in goes out, and nothing else is touched."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper, parser

from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load, save
from tests.graphs import attention, images, parse, run


@pytest.fixture
def hybrid(tmp_path):
    path = tmp_path / "hybrid.onnx"
    onnx.save(attention(), path)
    return path


def test_metadata_of_the_model_and_of_its_nodes_survives(tmp_path):
    proto = attention()
    helper.set_model_props(proto, {"author": "me"})
    proto.graph.node[3].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'block', 'block.attn', 'q']")
    save(load(proto), tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx")
    assert {prop.key: prop.value for prop in saved.metadata_props} == {"author": "me"}
    kept = {node.name: node.metadata_props[0].value for node in saved.graph.node if node.metadata_props}
    assert list(kept.values()) == ["['', 'block', 'block.attn', 'q']"]


def test_the_source_is_never_changed(hybrid):
    before = hashlib.sha256(hybrid.read_bytes()).digest(), hybrid.stat().st_mtime_ns
    proto = onnx.load(hybrid)
    serialized = proto.SerializeToString()
    graph = gs.import_onnx(onnx.load(hybrid))
    names = [node.name for node in graph.nodes]
    for source in (hybrid, proto, graph):
        model = load(source)
        for node in model.graph.nodes:
            node.name = f"renamed_{node.name}"
        for tensor in model.graph.tensors().values():
            tensor.name = f"renamed_{tensor.name}"
        model.to_proto()
    assert (hashlib.sha256(hybrid.read_bytes()).digest(), hybrid.stat().st_mtime_ns) == before
    assert proto.SerializeToString() == serialized
    assert [node.name for node in graph.nodes] == names
    assert not any(name.startswith("renamed_") for name in graph.tensors())


@pytest.mark.parametrize("make", [lambda path: path, str, onnx.load, lambda path: gs.import_onnx(onnx.load(path))])
def test_a_path_a_proto_and_a_graph_load_alike(hybrid, make):
    proto = load(make(hybrid)).to_proto()
    x = images()
    np.testing.assert_array_equal(run(proto, image=x)[0], run(onnx.load(hybrid), image=x)[0])


def test_every_node_gets_a_name_of_its_own():
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu (x) \n b = Relu (a) \n y = Relu (b) }")
    proto.graph.node[1].name = "Relu_2"
    proto.graph.node[2].name = "Relu_2"
    names = [node.name for node in load(proto).graph.nodes]
    assert len(set(names)) == 3
    assert names[1] == "Relu_2"
    assert all(names)


def test_shapes_are_inferred():
    graph = load(attention()).graph
    assert graph.tensors()["scores"].shape == ["N", 16, 16]


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_older_opset_is_converted_up_and_computes_the_same(opset):
    proto = parser.parse_model(
        f"""<ir_version: 6, opset_import: ["" : {opset}]>
        g (float[2, 3, 4] x) => (float[2, 3, 4] y) {{ a = Relu (x) \n y = Softmax <axis = 2> (a) }}"""
    )
    converted = load(proto).to_proto()
    assert converted.opset_import[0].version >= 13
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(run(converted, x=x)[0], run(proto, x=x)[0], rtol=1e-6)


def test_a_float16_model_keeps_its_type_at_an_opset_whose_dequantizelinear_has_it():
    proto = parse("g (float16[2, 2] x) => (float16[2, 2] y) { y = MatMul (x, w) }", w=np.ones((2, 2), np.float16))
    converted = load(proto).to_proto()
    assert converted.opset_import[0].version >= 19
    assert converted.graph.initializer[0].data_type == onnx.TensorProto.FLOAT16


def test_float16_in_constant_nodes_counts_too():
    proto = parse(
        """g (float16[1, 1, 2, 2] x) => (float16[1, 1, 2, 2] y) {
            w = Constant <value = float16[1, 1, 1, 1] {1}> ()
            y = Conv (x, w)
        }"""
    )
    assert load(proto).to_proto().opset_import[0].version >= 19


def test_initializers_that_are_inputs_as_well_are_no_inputs_any_more():
    proto = parse("g (float[2] x) => (float[2] y) { y = Add (x, w) }", w=np.ones(2, np.float32))
    proto.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2]))
    proto.ir_version = 3
    result = load(proto).to_proto()
    assert [value.name for value in result.graph.input] == ["x"]
    assert result.ir_version >= 8, "functions need it"


def test_version_domain_and_descriptions_survive():
    proto = attention()
    proto.model_version, proto.domain, proto.doc_string, proto.graph.doc_string = 7, "com.me", "mine", "a graph"
    result = load(proto).to_proto()
    assert (result.model_version, result.domain, result.doc_string) == (7, "com.me", "mine")
    assert result.graph.doc_string == "a graph"


def test_sparse_initializers_are_refused_by_name():
    proto = parse("g (float[4] x) => (float[4] y) { y = Relu (x) }")
    values = helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", onnx.TensorProto.INT64, [1], [2])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(OnnxquantError, match="sparse initializers"):
        load(proto)


def test_functions_and_subgraphs_are_kept():
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "mine" : 1]>
        g (float[2] x, bool c) => (float[2] y) {
            d = mine.Twice (x)
            y = If (c) <
                then_branch = yes () => (float[2] t) { t = Relu (d) },
                else_branch = no () => (float[2] e) { e = Neg (d) }
            >
        }
        <opset_import: ["" : 17], domain: "mine"> Twice (a) => (b) { b = Add (a, a) }"""
    )
    result = load(proto).to_proto()
    x = np.array([-1, 2], np.float32)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        np.testing.assert_array_equal(run(result, **feeds)[0], run(proto, **feeds)[0])
    assert result.functions[0].name == "Twice"


def test_external_data_is_read_and_a_small_result_is_one_file(tmp_path):
    proto = attention()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    save(load(tmp_path / "m.onnx"), tmp_path / "out.onnx")
    (tmp_path / "m.bin").unlink()
    x = images()
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "out.onnx"), image=x)[0], run(attention(), image=x)[0])


def test_missing_external_data_is_named(tmp_path):
    onnx.save(attention(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(OnnxquantError, match=r"m\.onnx: its external data can't be read.*m\.bin"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin"])
def test_external_data_outside_the_models_folder_is_refused(tmp_path, location):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"0" * 16)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    proto = parse("g (float[4] x) => (float[4] y) { y = Add (x, w) }", w=np.zeros(4, np.float32))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxquantError, match="external data can't be read"):
        load(folder / "m.onnx")


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    broken = attention()
    broken.graph.node[0].input[1] = "nowhere"
    with pytest.raises(OnnxquantError, match="not a valid ONNX graph"):
        save(broken, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_onnx_runtime_refuses_is_not_written(tmp_path):
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "nobody", "Knows"
    proto.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(OnnxquantError, match=r"ONNX Runtime refuses the graph.*Knows"):
        save(proto, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_fails_when_it_runs_is_not_written(tmp_path):
    proto = parse(
        "g (float[N, 4] x) => (float[M] y) { s = Reshape (x, shape) \n y = Squeeze (s) }",
        shape=np.array([3, -1], np.int64),
    )
    with pytest.raises(OnnxquantError, match="ONNX Runtime refuses the graph"):
        save(proto, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_no_regular_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OnnxquantError, match="not a regular file"):
        save(attention(), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_an_unwritable_folder_is_named(tmp_path):
    with pytest.raises(OnnxquantError, match=r"missing/out\.onnx: can't be written.*-o"):
        save(attention(), tmp_path / "missing" / "out.onnx")


def test_saved_bytes_do_not_depend_on_the_process(tmp_path, hybrid):
    script = (
        "import sys, hashlib; from onnxquant.graph.model import load, save\n"
        "save(load(sys.argv[1]), sys.argv[2]); print(hashlib.sha256(open(sys.argv[2], 'rb').read()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, hybrid, tmp_path / "out.onnx"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_weights_above_the_limit_go_to_a_file_beside(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxquant.graph.model.PROTOBUF_LIMIT", 1000)
    original = attention(channels=64)
    save(original, tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx.data").stat().st_size > 4 * 64 * 64
    x = images()
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "big.onnx"), image=x)[0], run(original, image=x)[0])


def test_scopes_of_both_exporters_read_alike():
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu (x) \n b = Relu (a) \n y = Relu (b) }")
    proto.graph.node[0].name = "/stages/stages.2/stages.2.1/conv_1x1/Relu"
    proto.graph.node[1].metadata_props.add(
        key="pkg.torch.onnx.name_scopes",
        value="['', 'stages', 'stages.2', 'stages.2.1', 'stages.2.1.conv_1x1', 'relu']",
    )
    proto.graph.node[2].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="__import__('os').abort()")
    model = load(proto)
    proto.graph.node[2].metadata_props[0].value = "{1: 2, 3: 4}"
    assert load(proto).scope(load(proto).graph.nodes[2]) == ""
    assert [model.scope(node) for node in model.graph.nodes] == ["stages.2.1.conv_1x1", "stages.2.1.conv_1x1", ""]


def test_a_tensor_of_codes_round_trips(tmp_path):
    codes = np.arange(-8, 8, dtype=np.int8)
    proto = parse(
        "g (float[16] x) => (float[16] y) { d = DequantizeLinear (c, s) \n y = Add (x, d) }", c=codes, s=np.float32(1)
    )
    save(load(proto), tmp_path / "m.onnx")
    saved = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    np.testing.assert_array_equal(saved["c"], codes)
