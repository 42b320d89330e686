"""The README is true: its Python runs, its recipe is one, and its lists are complete."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxquant import rewrite
from onnxquant.recipes import recipe_names
from onnxquant.targets import target_names
from tests.graphs import attention, images

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(attention(), "model.onnx")
    np.savez("calib.npz", image=images(32))
    exec(compile(code, "README.md", "exec"), {})
    written = [path for path in tmp_path.glob("model.*.onnx")]
    assert written
    onnx.checker.check_model(written[0], full_check=True)


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_recipe_is_one(text, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    assert rewrite(attention(), recipe=str(tmp_path / "mine.toml"), calibration=images(32)).plan.entries


@pytest.mark.parametrize("name", recipe_names() + target_names())
def test_every_recipe_and_target_is_in_a_table(name):
    assert f"| `{name}` |" in README
