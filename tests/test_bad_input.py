"""Whatever is wrong with the input, the user reads one line that names it, and nothing is written."""

import json
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from onnxquant.cli import main
from tests.graphs import attention, images, parse


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: a good model and good calibration data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(attention(), "model.onnx")
    np.savez("calib.npz", image=images(8))
    return tmp_path


@pytest.fixture
def fails(folder, monkeypatch, capsys):
    """Run `onnxquant ...`, hold it to the rules for bad input, and return its one line."""

    def run(*arguments):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        monkeypatch.setattr(sys, "argv", ["onnxquant", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert "Traceback" not in captured.err
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before, "files were changed"
        assert captured.out == ""
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1, captured.err
        return lines[0]

    return run


def test_a_missing_file(fails):
    assert fails("rewrite", "nowhere.onnx") == "onnxquant: error: nowhere.onnx: no such file"


def test_a_folder_instead_of_a_file(fails, folder):
    assert "is a folder; give the .onnx file itself" in fails("rewrite", folder)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x00" * 64])
def test_a_file_that_is_not_onnx(fails, folder, content):
    (folder / "bad.onnx").write_bytes(content)
    assert "bad.onnx: not an ONNX file" in fails("rewrite", "bad.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(fails, folder, share):
    content = (folder / "model.onnx").read_bytes()
    (folder / "bad.onnx").write_bytes(content[: int(len(content) * share)])
    line = fails("rewrite", "bad.onnx")
    assert "bad.onnx: not an ONNX file, or a truncated one" in line or "not a valid ONNX graph" in line


def test_missing_external_data(fails, folder):
    onnx.save(attention(), "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=0)
    (folder / "ext.bin").unlink()
    line = fails("rewrite", "ext.onnx")
    assert "ext.onnx: its external data can't be read" in line
    assert "put the data file beside the .onnx file" in line


def test_truncated_external_data(fails, folder):
    onnx.save(attention(), "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=0)
    (folder / "ext.bin").write_bytes((folder / "ext.bin").read_bytes()[:100])
    assert "ext.onnx: " in fails("rewrite", "ext.onnx")


def test_an_invalid_graph(fails):
    broken = attention()
    broken.graph.node[0].input[1] = "nowhere"
    onnx.save(broken, "broken.onnx")
    assert "broken.onnx: not a valid ONNX graph" in fails("rewrite", "broken.onnx")


def test_shapes_that_contradict_each_other(fails):
    broken = attention()
    broken.graph.initializer[0].dims[:] = [8, 3, 9, 3]
    onnx.save(broken, "broken.onnx")
    assert "broken.onnx: not a valid ONNX graph" in fails("rewrite", "broken.onnx")


@pytest.mark.parametrize("opset", [3, 99])
def test_an_unsupported_opset(fails, opset):
    proto = attention()
    proto.opset_import[0].version = opset
    onnx.save(proto, "odd.onnx")
    assert f"odd.onnx: opset {opset} " in fails("rewrite", "odd.onnx")


def test_nothing_to_quantize(fails):
    onnx.save(parse("g (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }"), "relu.onnx")
    line = fails("rewrite", "relu.onnx")
    assert "relu.onnx: nothing to quantize" in line
    assert "no convolution with a constant float weight" in line


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"picture": images(8)}, "image"),
        ({"image": images(8)[:, :, :, :4]}, "(N, 3, 8, 8)"),
        ({"image": images(8)[0, 0]}, "(N, 3, 8, 8)"),
        ({"image": images(8).astype(np.int64)}, "float32"),
        ({"image": images(0)}, "calib"),
        ({"image": np.array([{}], dtype=object)}, "calib"),
    ],
)
def test_calibration_arrays_that_do_not_fit_the_model(fails, arrays, expected):
    np.savez("bad_calib.npz", **arrays)
    line = fails("rewrite", "model.onnx", "--calib", "bad_calib.npz")
    assert "bad_calib.npz" in line
    assert expected in line


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_calibration_data_that_is_not_finite(fails, value):
    data = images(8)
    data[5, 0, 0, 0] = value
    np.savez("nan.npz", image=data)
    line = fails("rewrite", "model.onnx", "--calib", "nan.npz")
    assert "nan.npz[5]" in line
    assert "NaN or infinite" in line


def test_an_activation_that_overflows_is_named_with_the_sample(fails):
    data = images(8)
    data[2] = 3e38
    np.savez("huge.npz", image=data)
    line = fails("rewrite", "model.onnx", "--calib", "huge.npz")
    assert "huge.npz[2]" in line
    assert "tensor" in line


def test_calibration_data_that_is_missing(fails):
    assert "--calib nowhere: no such file" in fails("rewrite", "model.onnx", "--calib", "nowhere")


def test_a_calibration_folder_without_images(fails, folder):
    (folder / "empty").mkdir()
    assert "no image" in fails("rewrite", "model.onnx", "--calib", "empty")


def test_images_for_a_model_that_does_not_say_how_to_preprocess_them(fails, folder):
    (folder / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "photos" / "a.png")
    assert "--preprocess" in fails("rewrite", "model.onnx", "--calib", "photos")


def test_an_unreadable_image_is_named(fails, folder):
    (folder / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "photos" / "a.png")
    (folder / "photos" / "b.jpg").write_bytes(b"not an image")
    assert "b.jpg" in fails("rewrite", "model.onnx", "--calib", "photos", "--preprocess", "unit")


def test_an_image_inside_a_zip_that_can_not_be_read_is_named(fails):
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("cat/b.jpg", b"not an image")
    assert "b.jpg" in fails("rewrite", "model.onnx", "--calib", "photos.zip", "--preprocess", "unit")


def test_pickled_data_is_never_loaded(fails):
    np.save("evil.npy", np.array([print], dtype=object), allow_pickle=True)
    assert "evil.npy" in fails("rewrite", "model.onnx", "--calib", "evil.npy")


@pytest.mark.parametrize("model", [".", "/", "x" * 300])
def test_a_path_that_can_not_be_a_model(fails, model):
    assert "onnxquant: error: " in fails("rewrite", model)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--plan-out", "model.onnx"], "--plan-out model.onnx: is the input itself (MODEL)"),
        (["-o", "calib.npz"], "-o calib.npz: is the input itself (--calib)"),
        (["-o", "same", "--plan-out", "same"], "--plan-out same: is what -o writes"),
        (["-o", "/dev/null"], "not a file in an existing folder"),
    ],
)
def test_an_output_never_takes_the_place_of_something_else(fails, options, expected):
    assert expected in fails("rewrite", "model.onnx", "--calib", "calib.npz", *options)


def test_a_plan_and_a_recipe_at_once(fails, folder):
    (folder / "plan.json").write_text("{}")
    line = fails("rewrite", "model.onnx", "--plan", "plan.json", "--set", "quantize_conv_weights.bits=6")
    assert "--plan: holds all decisions already" in line


@pytest.mark.parametrize("arguments", [["rewrite"], ["rewrite", "model.onnx", "--samples", "0"], ["nonsense"]])
def test_a_command_line_that_is_wrong(fails, arguments):
    assert "--help`" in fails(*arguments)


def test_a_model_that_can_not_run_on_the_data_given(fails):
    proto = parse(
        "g (float[N, 1, H, W] x) => (float[N, 1, A, B] y) { y = Conv (x, w) }", w=np.ones((1, 1, 5, 5), np.float32)
    )
    onnx.save(proto, "five.onnx")
    np.savez("small.npz", x=np.ones((8, 1, 3, 3), np.float32))
    assert "running it on small.npz[" in fails("rewrite", "five.onnx", "--calib", "small.npz")


@pytest.mark.parametrize("output", ["missing/out.onnx", "."])
def test_an_output_path_that_can_not_be_written(fails, output):
    assert "can't be written" in fails("rewrite", "model.onnx", "-o", output)


def test_an_unknown_recipe(fails):
    assert "--recipe best: unknown; choose one of adfq-vit, easyquant, efficientquant" in fails(
        "rewrite", "model.onnx", "--recipe", "best"
    )


def test_an_unknown_target(fails):
    assert "--target toaster: unknown; choose one of onnxruntime" in fails(
        "rewrite", "model.onnx", "--target", "toaster"
    )


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("quantize_conv_weights.bits=1", "bits"),
        ("quantize_conv_weights.bits=9", "bits"),
        ("quantize_conv_weights.size=9", "unknown option"),
        ("quantise.bits=8", "no such pass"),
        ("nonsense", "pass.option=value"),
    ],
)
def test_an_unknown_pass_or_option_or_a_value_out_of_range(fails, setting, expected):
    assert expected in fails("rewrite", "model.onnx", "--set", setting)


def test_a_plan_that_is_not_one(fails, folder):
    (folder / "plan.json").write_text(json.dumps({"entries": "none"}))
    assert "--plan plan.json: entries" in fails("rewrite", "model.onnx", "--plan", "plan.json")


def test_metadata_that_is_not_what_it_should_be(fails):
    proto = attention()
    helper.set_model_props(proto, {"onnxquant.preprocessing": "__import__('os').system('true')"})
    onnx.save(proto, "odd.onnx")
    line = fails("rewrite", "odd.onnx", "--calib", "calib.npz")
    assert "odd.onnx" in line
    assert "onnxquant.preprocessing" in line


def test_a_weight_that_is_not_finite_names_its_node(fails):
    proto = attention()
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.inf
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, proto.graph.initializer[0].name))
    onnx.save(proto, "inf.onnx")
    assert "weight of node Conv_0 has NaN or infinite values" in fails("rewrite", "inf.onnx")


def test_an_operator_nobody_knows(fails):
    proto = attention()
    proto.graph.node.append(helper.make_node("Mystery", ["logits"], ["more"], domain="nobody"))
    proto.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 10]))
    proto.opset_import.append(helper.make_opsetid("nobody", 1))
    onnx.save(proto, "mystery.onnx")
    assert "Mystery" in fails("rewrite", "mystery.onnx")


def test_options_for_data_without_data(fails):
    for option in (["--verify-each"], ["--per-class", ":4"], ["--preprocess", "unit"]):
        assert f"{option[0]}: needs data; give some with --calib" in fails("rewrite", "model.onnx", *option)
