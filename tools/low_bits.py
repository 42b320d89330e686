"""Top-1 of recipes at few bits, over seeds, as a Markdown table.

    python tools/low_bits.py models/cifar10/vit.onnx --recipe minmax --recipe adfq-vit --bits 4 --bits 6 --seeds 3 \
        --calib cifar10.zip --calib-per-class :4500 --data cifar10.zip --per-class 4500:

``--bits`` is given to every pass that has the option, for weights and activations alike; a seed to every pass that has
one. A recipe without a seed gives the same every time, and is measured once. ``--set`` changes options of the recipes
that have them. Figures are those of the rewritten file in ONNX Runtime, with the SQNR at its output. The last column
holds it to the simulation of its plan: how many of some images come out as simulated, which is above 40 dB, and the
SQNR over all of them.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from onnxquant import RewriteResult, load, rewrite
from onnxquant.calibration.batching import batches
from onnxquant.calibration.dataset import parse_slice
from onnxquant.calibration.samples import Dataset, Subset, input_specs
from onnxquant.defaults import DEFAULT_SAMPLES
from onnxquant.errors import OnnxquantError
from onnxquant.measure.accuracy import evaluate
from onnxquant.measure.metrics import sqnr_db
from onnxquant.measure.sessions import Runner
from onnxquant.pipeline import open_samples
from onnxquant.recipes import load_recipe, option_names
from onnxquant.search.simulate import simulate_plan

SIMULATED = 64
"""Images, at most, on which the runtime is held to the simulation."""


def against_simulation(path: Path, result: RewriteResult, data: Dataset) -> tuple[float, float]:
    """Share of images that come out as simulated, and the SQNR in dB over all."""
    simulation = simulate_plan(path, result.plan)
    runner, found, expected = Runner(result.model, str(path)), [], []
    some = Subset(data, range(0, len(data), -(-len(data) // SIMULATED)))
    for batch in batches(some, 1, input_specs(result.model)):
        found.append(runner.run(batch, list(runner.outputs)[:1])[0])
        with torch.no_grad():
            expected.append(next(iter(simulation.run(batch.feeds).values())).numpy())
    alike = [sqnr_db(*pair) > 40 for pair in zip(expected, found, strict=True)]
    return sum(alike) / len(alike), sqnr_db(np.concatenate(expected), np.concatenate(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--recipe", action="append", required=True)
    parser.add_argument("--bits", type=int, action="append", required=True)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--target", default="reference")
    parser.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="calibration images")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--calib-per-class", type=parse_slice)
    parser.add_argument("--data", required=True, help="labelled images")
    parser.add_argument("--per-class", type=parse_slice)
    parser.add_argument("--set", action="append", default=[], metavar="[PASS.]OPTION=VALUE")
    args = parser.parse_args()

    options = {recipe: option_names(load_recipe(recipe)) for recipe in args.recipe}
    for text in args.set:
        if not any(text.partition("=")[0] in known for known in options.values()):
            raise OnnxquantError(f"--set {text}: none of the recipes has such an option")
    model = load(args.model)
    held = open_samples(model, args.data, args.per_class)
    calibration = open_samples(model, args.calib, args.calib_per_class)
    print(f"{args.model}: {100 * evaluate(args.model, held).top1:.2f} % of {len(held)} images, in float\n")
    print("| recipe | bits W/A | top-1 (%) by seed | mean | SQNR (dB) | seconds | as simulated |")
    print("|---|---|---|---|---|---|---|")
    for recipe, known in options.items():
        chosen = [text for text in args.set if text.partition("=")[0] in known]
        for bits in args.bits:
            found, sqnr, simulated, seconds = [], [], [], 0.0
            for seed in range(args.seeds if "seed" in known else 1):
                overrides = [f"bits={bits}", *([f"seed={seed}"] if "seed" in known else []), *chosen]
                start = time.perf_counter()
                result = rewrite(
                    args.model,
                    recipe=recipe,
                    target=args.target,
                    overrides=overrides,
                    calibration=calibration,
                    samples=args.samples,
                    min_sqnr=-math.inf,
                )
                seconds += time.perf_counter() - start
                found.append(100 * evaluate(result.model, held).top1)
                sqnr.append(result.report.sqnr_db or math.nan)
                simulated.append(against_simulation(args.model, result, held))
            each, count = ", ".join(f"{top1:.2f}" for top1 in found), len(found)
            share, agreement = (sum(figures) / count for figures in zip(*simulated, strict=True))
            print(
                f"| {recipe} | {bits}/{bits} | {each} | {sum(found) / count:.2f} | {sum(sqnr) / count:.1f} "
                f"| {seconds / count:.0f} | {share:.0%}, {agreement:.1f} dB |",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main()
    except OnnxquantError as error:
        sys.exit(f"error: {error}")
