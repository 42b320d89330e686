"""tools/paper_tables.py: the papers' figures, ours where they are measured, and nothing made up."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"


def paper_tables(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "paper_tables.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows_of(text):
    return [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "model" not in line
    ]


def test_without_models_every_figure_of_the_papers_is_there_and_none_is_measured():
    done = paper_tables()
    with (ROOT / "models" / "paper_results.csv").open(newline="") as file:
        expected = [row["value"] for row in csv.DictReader(file)]
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(" | ")[5] for line in done.stdout.splitlines() if "not measured" in line) == sorted(
        expected
    )


@pytest.mark.slow
def test_a_model_that_is_given_is_measured_and_the_others_are_not():
    done = paper_tables(
        "--table", "EfficientQuant, Table 1", "--model", f"MobileViT_xxs={DEMO / 'mobilevit_xxs_digits.onnx'}",
        "--calib", DEMO / "digits_train.npz", "--data", DEMO / "digits.npz",
        "--set", "candidates=10", "--set", "rounds=1", "--set", "places=64", "--set", "search_scales.images=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {(row[0], row[1]): row for row in rows_of(done.stdout)}
    assert rows["MobileViT_xxs", "FP32"][5:8] == ["68.91", "98.87", "+29.96"]
    assert float(rows["MobileViT_xxs", "EfficientQuant"][6]) > 98
    assert float(rows["MobileViT_xxs", "Q-HyViT"][6]) > 98
    assert rows["MobileViT_xxs", "HyQ"][6] == "not measured"
    assert rows["MobileViT_xs", "FP32"][6] == "not measured"


def test_a_table_or_model_that_no_paper_has_is_refused():
    assert "there are EfficientQuant, Table 1" in paper_tables("--table", "Table 9").stderr
    assert "no table has a model of that name" in paper_tables("--model", "resnet=x.onnx").stderr
