"""Time and memory of the whole `onnxquant rewrite` process, measured from outside.

    python tools/benchmark_rewrite.py model.onnx --calib images/ --runs 5

Give a mobilevit_xxs at 256x256 (``onnxquant export mobilevit_xxs --seed 0 -o model.onnx``) and a folder of 32 images;
without ``--calib``, 32 random JPEGs of 320x320 are made. Prints the minimum, median and maximum of the wall-clock time
and of the largest resident memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def make_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        coarse.resize((320, 320), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.jpg", quality=90)


def run_once(command: list[str]) -> tuple[float, float]:
    """Seconds and MB of one run."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", help="calibration data [default: 32 random images]")
    parser.add_argument("--recipe", default="efficientquant")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calibration = args.calib or folder
        if not args.calib:
            make_images(Path(folder), 32)
        output = Path(folder) / "out.onnx"
        command = [
            str(Path(sys.executable).with_name("onnxquant")), "rewrite", str(args.model), "--calib", calibration,
            "--recipe", args.recipe, "-o", str(output),
        ]  # fmt: skip
        seconds, megabytes = zip(*(run_once(command) for _ in range(args.runs)), strict=True)
    for label, values, unit in (("wall clock", seconds, "s"), ("peak memory", megabytes, "MB")):
        print(
            f"{label:12s} min {min(values):7.2f} {unit}  median {statistics.median(values):7.2f} {unit}  "
            f"max {max(values):7.2f} {unit}"
        )


if __name__ == "__main__":
    main()
