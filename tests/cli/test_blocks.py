"""`onnxquant blocks` on the command line."""

import json

import onnx
import pytest
import typer
from typer.testing import CliRunner

from onnxquant.cli.blocks import blocks_command
from onnxquant.errors import OnnxquantError
from tests.fixtures import anonymise, load_fixture
from tests.graphs import attention

APP = typer.Typer()
APP.command()(blocks_command)


def invoke(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.fixture
def saved(tmp_path):
    def save(proto):
        path = tmp_path / "m.onnx"
        onnx.save(proto, path)
        return path

    return save


def test_blocks_are_shown_in_their_modules_with_the_count_of_each_kind_at_the_end(saved):
    path = saved(load_fixture("mobilevit_xxs", "dynamo"))
    before = path.read_bytes()
    lines = invoke(path).output.splitlines()
    assert lines[-1] == "29 conv, 9 attention, 9 mlp, 3 bridge, 21 norm, 1 head"
    assert lines[1] == "├── stem.conv: conv, 3 nodes, 432 parameters: Conv, Sigmoid, Mul"
    (attn,) = {line.strip("│ ") for line in lines if "attn: attention (dot)" in line and "16,640 parameters" in line}
    assert attn.startswith("├── attn: attention (dot), ")
    assert "4 MatMul" in attn
    assert sum("bridge, " in line for line in lines[:-1]) == 3
    assert path.read_bytes() == before


def test_without_names_the_list_is_flat(saved):
    lines = invoke(saved(anonymise(attention()))).output.splitlines()
    assert len(lines) == 6
    assert [line[:4] for line in lines[1:-1]] == ["├── ", "├── ", "├── ", "└── "]
    assert lines[2].startswith("├── attention (dot), ")


def test_json_names_every_node_once(saved):
    proto = attention()
    document = json.loads(invoke(saved(proto), "--json").output)
    assert document["counts"] == {"conv": 2, "attention": 1, "head": 1}
    assert document["model"].endswith("m.onnx")
    assert [block["kind"] for block in document["blocks"]] == ["conv", "attention", "conv", "head"]
    assert all(list(block) == ["kind", "scope", "variant", "nodes", "parameters"] for block in document["blocks"])
    assert sum(len(block["nodes"]) for block in document["blocks"]) == len(proto.graph.node)
    floats = [t.dims for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(block["parameters"] for block in document["blocks"]) == sum(
        int(onnx.numpy_helper.np.prod(d)) for d in floats
    )


def test_the_same_file_gives_the_same_json(saved):
    path = saved(attention())
    assert invoke(path, "--json").output == invoke(path, "--json").output


def test_names_from_the_file_are_printed_as_text(saved):
    proto = attention()
    proto.graph.node[0].name = "/[red]a/\x1b[31mb/Conv"
    output = invoke(saved(proto)).output
    assert "[red]a" in output
    assert "\x1b" not in output


def test_a_scope_may_be_as_deep_as_it_likes(saved):
    proto = attention()
    for node in proto.graph.node:
        node.name = "/" + "/".join(f"m{level}" for level in range(3000)) + f"/{node.output[0]}/{node.op_type}"
    assert invoke(saved(proto)).exit_code == 0


def test_a_missing_file_is_an_error_in_one_line(tmp_path):
    result = invoke(tmp_path / "none.onnx")
    assert isinstance(result.exception, OnnxquantError)
    assert "no such file" in str(result.exception)
