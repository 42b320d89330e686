"""Recipes in every runtime, for both exporters: does it run, how near is it, how long does it build?

    python tools/runtime_table.py                 # one model of every family
    python tools/runtime_table.py deit_t swin_t   # these models of the zoo

Prints a Markdown table; the one in the README is this script's. The graphs are the test suite's, with random weights:
the SQNR says that a runtime computes the same, not how accurate a trained model would be. TensorRT-RTX parses and
builds ahead of time for `COMPUTE_CAPABILITIES`, with a dynamic and a static batch; nothing is executed on a GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from gpu_check import RECIPES

from onnxquant import rewrite, save
from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.deploy.build import Engine, build_engine
from onnxquant.errors import OnnxquantError, first_line
from onnxquant.measure.compare import compare
from onnxquant.zoo import load_zoo

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fixtures import FIXTURES, first_of_families, load_fixture, with_batch

COMPUTE_CAPABILITIES = ("8.6", "8.9", "12.0")
TARGET = "tensorrt"


def onnx_runtime(original: onnx.ModelProto, rewritten: onnx.ModelProto, images: np.ndarray) -> str:
    """SQNR of the worst output."""
    data = open_dataset(images, input_specs(original), None)
    outputs = compare(original, rewritten, data, per_layer=False).outputs
    return f"{min(output.sqnr_db for output in outputs.values()):.1f} dB".replace("inf dB", "equal")


def polygraphy(path: Path, size: tuple[int, int]) -> str:
    """Whether ``polygraphy run --onnxrt`` runs it."""
    command = [str(Path(sys.executable).with_name("polygraphy")), "run", str(path), "--onnxrt"]
    command += ["--input-shapes", f"input:[1,3,{size[0]},{size[1]}]"]
    done = subprocess.run(command, capture_output=True, text=True)
    return "runs" if done.returncode == 0 else f"fails: {done.stdout.strip().splitlines()[-1]}"


def seconds(engine: Engine) -> float:
    return engine.parse_seconds + engine.build_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of the zoo [default: the first of every family]")
    parser.add_argument("--repeat", type=int, default=3, help="builds of each, in turns; their median counts")
    args = parser.parse_args()
    zoo = load_zoo()
    wanted = args.models or first_of_families()

    def wanted_first(fixture: tuple[str, str]) -> tuple[int, str]:
        return wanted.index(fixture[0]), fixture[1]

    columns = ["model", "exporter", "recipe", "ONNX Runtime", "polygraphy", "TensorRT-RTX", "static batch"]
    columns += ["time to build", "weights MB", "engine MB"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, exporter in sorted((fixture for fixture in FIXTURES if fixture[0] in wanted), key=wanted_first):
        original, size = load_fixture(name, exporter), zoo[name].preprocessing.input_size
        images = np.random.default_rng(0).standard_normal((4, 3, *size), dtype=np.float32)
        variants = {"float": original}
        for recipe in RECIPES:
            try:
                result = rewrite(original, recipe=recipe, calibration=images, target=TARGET, min_sqnr=-math.inf)
                variants[recipe] = result.model
            except OnnxquantError as error:
                print(f"| {name} | {exporter} | {recipe} | {first_line(error)} |" + " |" * (len(columns) - 4))
        times: dict[str, list[float]] = {recipe: [] for recipe in variants}
        for _ in range(args.repeat):
            for recipe, model in variants.items():
                times[recipe].append(seconds(build_engine(model, compute_capabilities=("8.6",))))
        base = statistics.median(times["float"])
        for recipe, model in variants.items():
            with tempfile.TemporaryDirectory() as folder:
                save(model, Path(folder) / "model.onnx")
                polygraphy_says = polygraphy(Path(folder) / "model.onnx", size)
            try:
                dynamic = build_engine(model, compute_capabilities=COMPUTE_CAPABILITIES)
                static = build_engine(with_batch(model, 1), compute_capabilities=COMPUTE_CAPABILITIES)
                says = ["builds", "builds" if static.plan else "", f"{statistics.median(times[recipe]) / base:.2f}x"]
                says += [f"{dynamic.weight_bytes / 1e6:.1f}", f"{len(dynamic.plan) / 1e6:.1f}"]
            except OnnxquantError as error:
                says = [first_line(error), *[""] * 4]
            cells = [name, exporter, recipe, onnx_runtime(original, model, images), polygraphy_says, *says]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
