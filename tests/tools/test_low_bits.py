"""tools/low_bits.py: a row for each recipe and number of bits, a figure for each seed that makes a difference."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"


def low_bits(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "low_bits.py"), DEMO / "mobilevit_xxs_digits.onnx"]
    options = ["--calib", DEMO / "digits_train.npz", "--data", DEMO / "digits.npz", *arguments]
    return subprocess.run([str(each) for each in (*command, *options)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_recipe_with_a_seed_is_measured_for_each_and_one_without_once():
    done = low_bits(
        "--recipe", "minmax", "--recipe", "adfq-vit", "--bits", "8", "--seeds", "2",
        "--set", "iterations=1", "--set", "reconstruct_modules.images=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[1], len(row[2].split(", "))) for row in rows] == [("minmax", "8/8", 1), ("adfq-vit", "8/8", 2)]
    assert all(float(row[3]) > 97 for row in rows)
    assert all(int(row[6].split("%")[0]) > 80 for row in rows)  # come out as simulated


def test_an_unknown_recipe_is_named():
    done = low_bits("--recipe", "nothing", "--bits", "8")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --recipe nothing: unknown")


def test_an_option_that_no_recipe_has_is_named():
    done = low_bits("--recipe", "minmax", "--recipe", "adfq-vit", "--bits", "8", "--set", "iteratons=1")
    assert done.returncode == 1
    assert done.stderr == "error: --set iteratons=1: none of the recipes has such an option\n"
