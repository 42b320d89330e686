"""`onnxquant export`, in the environment that has torch and timm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner, Result

from onnxquant.errors import OnnxquantError
from onnxquant.export import Exporter, export
from tests.fixtures import load_fixture, tensors

pytestmark = pytest.mark.export

ARCH = "mobilevit_xxs"
EXPORTERS: tuple[Exporter, ...] = ("torchscript", "dynamo")
CHECKPOINT_PREPROCESSING = {
    "input_size": [64, 96],
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same seeded model, through each exporter."""
    folder = tmp_path_factory.mktemp("exported")
    return {exporter: export(ARCH, folder / f"{exporter}.onnx", exporter=exporter, seed=0) for exporter in EXPORTERS}


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    """What tools/train.py saves, for four classes."""
    import timm

    state = timm.create_model(ARCH, num_classes=4).state_dict()
    return {"state_dict": state, "arch": ARCH, "classes": list("abcd"), "preprocessing": CHECKPOINT_PREPROCESSING}


def save(content: object, path: Path) -> Path:
    import torch

    torch.save(content, path)
    return path


def torch_and_onnx(model: Any, path: Path, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of both for the same images."""
    import torch

    images = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return expected, session.run(["logits"], {"input": images.numpy()})[0]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=Path(__file__).parent,  # not where onnxquant's sources lie: the installed package is meant
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_exported_model_computes_what_torch_computes_at_any_batch(
    exported: dict[str, Path], exporter: str, batch: int
) -> None:
    import timm
    import torch

    torch.manual_seed(0)
    expected, actual = torch_and_onnx(timm.create_model(ARCH), exported[exporter], batch, 3, 256, 256)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 17), ("dynamo", 20)])
def test_file_is_one_valid_model_of_the_stated_interface(exported: dict[str, Path], exporter: str, opset: int) -> None:
    model = onnx.load(exported[exporter], load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert sorted(path.name for path in exported[exporter].parent.iterdir()) == ["dynamo.onnx", "torchscript.onnx"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_preprocessing_and_source_are_recorded(exported: dict[str, Path], exporter: str) -> None:
    found = metadata(exported[exporter])
    assert found.keys() == {"onnxquant.preprocessing", "onnxquant.source"}
    assert found["onnxquant.source"] == "timm mobilevit_xxs"
    assert found["onnxquant.preprocessing"] == (
        '{"crop_mode": "center", "crop_pct": 0.9, "input_size": [256, 256], "interpolation": "bicubic", '
        '"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}'
    )


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_no_local_path_leaks_into_the_file(exported: dict[str, Path], exporter: str) -> None:
    content = exported[exporter].read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content


def test_dynamo_export_keeps_the_module_scopes(exported: dict[str, Path]) -> None:
    nodes = onnx.load(exported["dynamo"]).graph.node
    keys = {entry.key for node in nodes for entry in node.metadata_props}
    assert {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"} <= keys


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_another_process_writes_the_same_bytes(exported: dict[str, Path], exporter: str, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    code = f"from onnxquant.export import export; export({ARCH!r}, {str(again)!r}, exporter={exporter!r}, seed=0)"
    done = in_a_process(code, PYTHONHASHSEED="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert again.read_bytes() == exported[exporter].read_bytes()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_committed_fixture_has_the_structure_of_a_fresh_export(exported: dict[str, Path], exporter: str) -> None:
    def structure(model: onnx.ModelProto) -> object:
        nodes = [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node]
        return nodes, [(tensor.data_type, list(tensor.dims)) for tensor in tensors(model)]

    assert structure(load_fixture(ARCH, exporter)) == structure(onnx.load(exported[exporter]))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_batch_can_be_fixed(exporter: Exporter, tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    weights = save(checkpoint, tmp_path / "model.pt")
    model = onnx.load(export(ARCH, tmp_path / "out.onnx", checkpoint=weights, exporter=exporter, batch=2))
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [[2, 3, 64, 96], [2, 4]]


def test_checkpoint_gives_weights_classes_and_size(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    import timm

    path = export(ARCH, tmp_path / "out.onnx", checkpoint=save(checkpoint, tmp_path / "model.pt"))
    model = timm.create_model(ARCH, num_classes=4)
    model.load_state_dict(checkpoint["state_dict"])
    expected, actual = torch_and_onnx(model, path, 3, 3, 64, 96)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    found = metadata(path)
    assert json.loads(found["onnxquant.classes"]) == list("abcd")
    assert json.loads(found["onnxquant.preprocessing"]) == {**CHECKPOINT_PREPROCESSING, "crop_mode": "center"}


def test_checkpoint_says_how_its_model_is_built(tmp_path: Path) -> None:
    """A transformer smaller than any of timm's."""
    import timm

    arch, options = "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1}
    model = timm.create_model(arch, num_classes=4, **options)
    preprocessing = {**CHECKPOINT_PREPROCESSING, "input_size": [32, 32]}
    content = {"state_dict": model.state_dict(), "arch": arch, "arch_options": options, "classes": list("abcd")}
    weights = save({**content, "preprocessing": preprocessing}, tmp_path / "model.pt")
    expected, found = torch_and_onnx(model, export(arch, tmp_path / "out.onnx", checkpoint=weights), 2, 3, 32, 32)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    weights = save({**content, "arch_options": {"depth": 2}, "preprocessing": preprocessing}, tmp_path / "model.pt")
    with pytest.raises(OnnxquantError, match="its weights do not fit"):
        export(arch, tmp_path / "out.onnx", checkpoint=weights)


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    weights = save(checkpoint, tmp_path / "model.pt")
    with pytest.raises(OnnxquantError, match=r"holds weights of mobilevit_xxs, not of mobilevit_xs"):
        export("mobilevit_xs", tmp_path / "out.onnx", checkpoint=weights)


def test_checkpoint_whose_weights_do_not_fit_is_refused(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    weights = save({**checkpoint, "classes": list("abc")}, tmp_path / "model.pt")
    with pytest.raises(OnnxquantError, match=r"do not fit mobilevit_xxs with 3 classes"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=weights)


@pytest.mark.parametrize("key", ["arch", "state_dict", "classes", "preprocessing"])
def test_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path, checkpoint: dict[str, Any], key: str) -> None:
    del checkpoint[key]
    with pytest.raises(OnnxquantError, match=rf"not a checkpoint of tools/train.py \(KeyError: '{key}'\)"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=save(checkpoint, tmp_path / "model.pt"))


@pytest.mark.parametrize(
    "content", [[1, 2], 3.0, {"arch": ARCH, "state_dict": 1, "classes": ["a"], "preprocessing": []}]
)
def test_checkpoint_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(OnnxquantError, match=r"not a checkpoint of tools/train.py"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=save(content, tmp_path / "model.pt"))


def test_checkpoint_whose_preprocessing_makes_no_sense_is_refused(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    checkpoint["preprocessing"] = {**CHECKPOINT_PREPROCESSING, "input_size": [64, -1]}
    with pytest.raises(OnnxquantError, match=r"model\.pt: .*input_size.*greater than 0"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=save(checkpoint, tmp_path / "model.pt"))


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    weights = save({**checkpoint, "arch": Payload(tmp_path / "owned")}, tmp_path / "model.pt")
    with pytest.raises(OnnxquantError, match=r"model\.pt: is no checkpoint of plain tensors"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=weights)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("not a checkpoint")
    with pytest.raises(OnnxquantError, match="is no checkpoint of plain tensors"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=tmp_path / "model.pt")
    with pytest.raises(OnnxquantError, match="No such file"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=tmp_path / "missing.pt")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mobilvit_xxs", "did you mean mobilevit_xxs"),
        ("mobilevit_xxs.nonsense", "check the part after the dot"),
        ("#", "timm.list_models"),
    ],
)
def test_unknown_name_is_answered_with_a_way_on(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(OnnxquantError, match=hint):
        export(name, tmp_path / "out.onnx", seed=0)


def test_checkpoint_and_seed_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OnnxquantError, match="exclude each other"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=tmp_path / "model.pt", seed=0)


@pytest.mark.parametrize("batch", [0, -1, "some"])
def test_batch_that_is_no_number_of_images_is_refused(tmp_path: Path, batch: Any) -> None:
    with pytest.raises(OnnxquantError, match="neither 'dynamic' nor a positive number"):
        export(ARCH, tmp_path / "out.onnx", seed=0, batch=batch)


def test_output_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxquantError, match="does not exist"):
        export(ARCH, tmp_path / "nowhere" / "out.onnx", seed=0)


def test_failed_write_leaves_nothing_behind(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    (tmp_path / "out.onnx").mkdir()
    weights = save(checkpoint, tmp_path / "model.pt")
    with pytest.raises(OnnxquantError, match="can't be written"):
        export(ARCH, tmp_path / "out.onnx", checkpoint=weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "out.onnx"]


def test_model_that_the_exporter_cannot_convert_is_one_error_and_no_chatter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OnnxquantError, match=r"halonet26t.*try --batch 1 or --exporter dynamo$") as caught:
        export("halonet26t", tmp_path / "out.onnx", seed=0)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_unreachable_hub_is_one_error_and_no_wait(tmp_path: Path) -> None:
    code = f"""
from onnxquant.errors import OnnxquantError
from onnxquant.export import export
try:
    export({ARCH!r}, {str(tmp_path / "out.onnx")!r})
except OnnxquantError as error:
    print(error)
"""
    # Port 9 refuses; an empty home has no cached weights.
    done = in_a_process(code, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "home"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{ARCH}: could not fetch timm's pretrained weights from the Hugging Face hub")
    assert done.stdout.endswith("give --checkpoint or --seed\n")
    assert done.stdout.count("\n") == 1


def test_missing_timm_names_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(OnnxquantError, match=r"pip install 'onnxquant\[export\]'"):
        export(ARCH, tmp_path / "out.onnx", seed=0)


def command_line(*arguments: str) -> Result:
    import typer

    from onnxquant.cli.export import export_command

    app = typer.Typer()
    app.command()(export_command)
    return CliRunner().invoke(app, arguments)


def test_command_line_reports_the_written_file_in_one_line(
    tmp_path: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, out = save(checkpoint, tmp_path / "model.pt"), tmp_path / "out.onnx"
    done = command_line(ARCH, "--checkpoint", str(weights), "--batch", "1", "-o", str(out))
    assert (done.exit_code, done.stdout) == (0, f"{out}: mobilevit_xxs, torchscript, batch 1, 3.9 MB\n")
    assert [path.parent.name for path in (tmp_path / "cache").rglob("*.onnx")] == ["onnxquant"]
    assert command_line(ARCH, "--seed", "0", "--batch", "few", "-o", str(out)).exit_code == 2


def test_command_line_keeps_nothing_where_told_so(
    tmp_path: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, out = save(checkpoint, tmp_path / "model.pt"), tmp_path / "out.onnx"
    assert command_line(ARCH, "--checkpoint", str(weights), "--no-cache", "-o", str(out)).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "out.onnx"]


def test_same_export_is_made_once(tmp_path: Path, checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    weights, cache = save(checkpoint, tmp_path / "model.pt"), tmp_path / "cache"
    first = export(ARCH, tmp_path / "first.onnx", checkpoint=weights, cache=cache)
    (kept,) = cache.iterdir()
    assert kept.name.startswith("mobilevit_xxs-torchscript-")
    assert kept.read_bytes() == first.read_bytes()

    again = Path(shutil.copy(weights, tmp_path / "copy.pt"))  # the content counts, not the name
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        second = export(ARCH, tmp_path / "second.onnx", checkpoint=again, cache=cache)
    assert second.read_bytes() == first.read_bytes()

    checkpoint["classes"] = list("abce")
    third = export(ARCH, tmp_path / "third.onnx", checkpoint=save(checkpoint, weights), cache=cache)
    assert third.read_bytes() != first.read_bytes()
    export(ARCH, tmp_path / "fourth.onnx", checkpoint=weights, batch=1, cache=cache)
    assert len(list(cache.iterdir())) == 3


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    weights = save(checkpoint, tmp_path / "model.pt")
    assert export(ARCH, tmp_path / "out.onnx", checkpoint=weights, cache=weights).is_file()


def test_versions_and_arguments_make_the_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxquant import export as module

    def key(
        arch: str = ARCH, exporter: Exporter = "dynamo", batch: Any = "dynamic", seed: int | None = 0
    ) -> str | None:
        return module._cache_key(arch, None, exporter, batch, seed, None)

    keys = {key(), key(arch="x"), key(exporter="torchscript"), key(batch=1), key(seed=1), key(seed=None)}
    assert key() in keys
    monkeypatch.setattr(module.metadata, "version", lambda package: "2.0")
    keys.add(key())
    assert len(keys) == 7
    assert None not in keys
