"""tools/bench_peers.py: a row for every tool, ours beside the others', those that fail included."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import attention, images

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "bench_peers.py"
MEASURE = ROOT / "tools" / "peers" / "measure.py"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two peers in this Python, one of which isn't installed in it; the cells of each tool, by column."""
    folder = tmp_path_factory.mktemp("peers")
    onnx.save(attention(), folder / "model.onnx")
    np.savez(folder / "calib.npz", image=images(64))
    np.savez(folder / "held.npz", image=images(20), labels=np.arange(20) % 10)
    command = [sys.executable, str(TOOL), "model.onnx", "--calib", "calib.npz", "--held", "held.npz", "--no-venv"]
    command += ["--peers", "onnxruntime-minmax,esp-ppq", "--runs", "1", "--ours", "w8a8/tensorrt", "--rounds", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines())
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


@pytest.mark.slow
def test_there_is_a_row_for_the_original_for_us_and_for_every_peer(table):
    assert list(table) == ["float32", "onnxquant w8a8/tensorrt", "onnxruntime-minmax", "esp-ppq"]


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["onnxquant w8a8/tensorrt", "onnxruntime-minmax"])
def test_cost_and_quality_of_a_tool_are_measured(table, tool):
    row = table[tool]
    assert 0 < float(row["time"].removesuffix(" s")) < 60
    assert 50 < float(row["memory"].removesuffix(" MB")) < 2000
    assert 5 < float(row["mean removed"].removesuffix(" dB")) < float(row["SQNR"].removesuffix(" dB")) < 80
    assert row["top-1"].endswith(" %")
    assert float(row["file"].removesuffix(" MB")) > 0
    assert float(row["speed-up"].split()[0]) > 0


@pytest.mark.slow
def test_a_tool_that_fails_is_listed_with_what_it_said(table):
    assert table["esp-ppq"]["SQNR"].startswith("fails: ModuleNotFoundError")
    assert not table["esp-ppq"]["speed-up"]


@pytest.mark.slow
def test_what_a_target_refuses_is_said(table):
    assert table["float32"]["TensorRT-RTX"] == "builds"
    assert table["onnxruntime-minmax"]["TensorRT-RTX"].startswith("refuses: ")


def test_peak_memory_is_that_of_the_command_and_its_children_alone(tmp_path):
    ballast = np.ones(60_000_000, np.float64)  # 480 MB in this process
    costs = []
    for code in ("pass", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'bytearray(10**8)'])"):
        command = [sys.executable, "-S", str(MEASURE), str(tmp_path / "cost.json"), sys.executable, "-c", code]
        subprocess.run(command, check=True)
        costs.append(json.loads((tmp_path / "cost.json").read_text())["memory_bytes"])
    assert ballast[-1] == 1
    assert costs[0] < 60e6
    assert 100e6 < costs[1] < 200e6


def test_an_unknown_peer_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOL), "m.onnx", "--calib", "c.npz", "--peers", "x"], capture_output=True
    )
    assert done.returncode == 2
    assert b"--peers x: is none of onnxruntime-minmax, " in done.stderr
