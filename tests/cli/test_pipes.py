"""`onnxquant rewrite - -o -` in a pipeline: stdout carries the model and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxquant.cli.rewrite import rewrite_command
from tests.cli.invoking import Verb
from tests.graphs import attention, images, op_types

REWRITE = Verb(rewrite_command)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and data for it."""
    onnx.save(attention(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", image=images(32))
    return tmp_path


def onnxquant(*arguments: str, given: bytes, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "onnxquant", *arguments]
    return subprocess.run(command, input=given, cwd=cwd, capture_output=True, check=False)


def test_the_model_goes_through_as_it_does_by_file_and_the_table_to_stderr(folder):
    piped = onnxquant(
        "rewrite", "-", "-o", "-", "--calib", "calib.npz", given=(folder / "model.onnx").read_bytes(), cwd=folder
    )
    assert piped.returncode == 0, piped.stderr
    assert REWRITE(folder / "model.onnx", "-o", folder / "q.onnx", "--calib", folder / "calib.npz").exit_code == 0
    assert piped.stdout == (folder / "q.onnx").read_bytes()
    assert b"written" in piped.stderr
    assert b"stdout in" in piped.stderr


def test_rewrites_follow_each_other(folder):
    first = onnxquant("rewrite", "model.onnx", "-o", "-", "--recipe", "weights-only", given=b"", cwd=folder)
    (folder / "softmax.toml").write_text(
        '[[pass]]\nname = "classify_blocks"\n[[pass]]\nname = "calibrate"\n[[pass]]\nname = "quantize_softmax_log2"\n'
    )
    second = onnxquant("rewrite", "-", "-o", "-", "--recipe", "softmax.toml", given=first.stdout, cwd=folder)
    assert second.returncode == 0, second.stderr
    ops = op_types(onnx.load_model_from_string(second.stdout))
    assert ops.count("DequantizeLinear") == 2
    assert ops.count("Log2QuantizeLinear") == 1


@pytest.mark.parametrize("given", [b"", b"hello, world", attention().SerializeToString()[:500]])
def test_what_is_no_model_is_one_line_and_nothing_on_stdout(folder, given):
    failed = onnxquant("rewrite", "-", "-o", "-", given=given, cwd=folder)
    assert failed.returncode == 2
    assert failed.stdout == b""
    (line,) = failed.stderr.decode().splitlines()
    assert line.startswith("onnxquant: error: stdin: not")


def test_a_result_that_misses_its_tolerance_is_not_written(folder):
    failed = onnxquant(
        *["rewrite", "model.onnx", "-o", "-", "--calib", "calib.npz", "--min-sqnr", "200"], given=b"", cwd=folder
    )
    assert failed.returncode == 3
    assert failed.stdout == b""


def test_a_model_from_stdin_needs_an_output(folder):
    assert "-o: needed where the model comes from stdin" in REWRITE.error("-")


def test_json_and_the_model_can_not_share_stdout(folder):
    assert "--json: stdout carries the model" in REWRITE.error(folder / "model.onnx", "-o", "-", "--json")
