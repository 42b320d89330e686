"""The papers' tables beside what this code measures: the paper's figure, ours, and the gap.

    python tools/paper_tables.py --table "EfficientQuant, Table 1" \
        --model MobileViT_xxs=mobilevit_xxs.onnx --calib imagenet/train --data imagenet/val

Figures come from ``models/paper_results.csv``. A row is measured where its model is given (by the name the table uses),
its metric is top-1 and its method is one of ours; every other row says "not measured". Without ``--table`` all tables
are printed.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from onnxquant import load, rewrite
from onnxquant.calibration.dataset import parse_slice
from onnxquant.defaults import DEFAULT_SAMPLES
from onnxquant.errors import OnnxquantError
from onnxquant.measure.accuracy import evaluate
from onnxquant.pipeline import open_samples
from onnxquant.recipes import Recipe, find_pass, load_recipe, option_names

RESULTS = Path(__file__).parents[1] / "models" / "paper_results.csv"

Settings = dict[str, str]


def settings(text: str) -> Settings:
    """``POQ=yes;SLQ=no`` as a dict."""
    return dict(choice.strip().split("=") for choice in text.split(";")) if "=" in text else {}


def hybrid_objective(given: Settings) -> list[str]:
    """Q-HyViT, Table 3: without the hybrid objective each layer is judged by itself, as in PTQ4ViT."""
    granularity = '["layer", "channel"]' if given["granularity"] == "yes" else '["layer"]'
    schemes = '["symmetric", "asymmetric"]' if given["scheme"] == "yes" else '["symmetric"]'
    bridges = str(given["scale_factor"] == "yes").lower()
    options = {"granularity": granularity, "schemes": schemes, "bridges": bridges}
    return [f"search_scales.{name}={value}" for name, value in options.items()]


def without_components(given: Settings) -> set[str]:
    """ADFQ-ViT, Table 4."""
    passes = {"POQ": "split_outliers", "SLQ": "quantize_gelu", "AMO": "reconstruct_modules"}
    return {name for component, name in passes.items() if given[component] == "no"}


@dataclass(frozen=True)
class Method:
    """What a paper's method is here.

    Attributes:
        recipe: its name.
        target: that it is measured on.
        options: overrides, from a row's settings.
        without: passes that are left out, from a row's settings.
        fixed: passes whose bits don't follow the table.
    """

    recipe: str
    target: str = "reference"
    options: Callable[[Settings], list[str]] = lambda _: []
    without: Callable[[Settings], set[str]] = lambda _: set()
    fixed: tuple[str, ...] = ()

    def build(
        self, weight_bits: str, activation_bits: str, setting: str, overrides: list[str]
    ) -> tuple[Recipe, list[str]]:
        """The recipe with its bits, and its options; of `overrides`, those that it has."""
        given, recipe = settings(setting), load_recipe(self.recipe)
        kept = [step for step in recipe.passes if step["name"] not in self.without(given)]
        for step in kept:
            if "bits" in find_pass(step["name"]).model_fields and step["name"] not in self.fixed:
                step["bits"] = int(weight_bits if step["name"].endswith("_weights") else activation_bits)
        recipe = recipe.model_copy(update={"passes": kept})
        known = option_names(recipe)
        return recipe, [*self.options(given), *(text for text in overrides if text.partition("=")[0] in known)]


METHODS = {
    "ADFQ-ViT": Method("adfq-vit"),
    "ADFQ-ViT ablation": Method("adfq-vit", without=without_components),
    "EasyQuant": Method("easyquant"),
    "EfficientQuant": Method("efficientquant", "onnxruntime"),
    "FQ-ViT": Method("fq-vit", fixed=("quantize_softmax_log",)),
    "PTQ4ViT": Method("ptq4vit"),
    "Q-HyViT": Method("q-hyvit"),
    "Q-HyViT ablation": Method("q-hyvit", options=hybrid_objective),
    "RepQ-ViT": Method("repq-vit"),
}
"""By the papers' names."""

FLOAT = ("FP32", "Full-Precision")
"""What the papers call the float model."""

NOT_MEASURED = "not measured"


class Measurements:
    """Top-1 in percent, measured once for every model, method and number of bits that the tables ask for.

    Args:
        models: file of each model, by the papers' name.
        calib: calibration data; without it ranges are data-free.
        data: labelled images; without them nothing is measured.
        calib_per_class: positions of each class to calibrate on.
        per_class: positions of each class to evaluate on.
        overrides: options, ``[pass.]option=value``, of the recipes that have them.
        samples: calibration images.
    """

    def __init__(
        self,
        models: dict[str, Path],
        calib: str | None,
        data: str | None,
        calib_per_class: slice | None,
        per_class: slice | None,
        overrides: list[str],
        samples: int,
    ) -> None:
        self._overrides, self._samples = overrides, samples
        self._models, self._calib, self._data = models, calib, data
        self._calib_per_class, self._per_class = calib_per_class, per_class
        self.top1 = cache(self._top1)

    def _top1(self, model: str, method: str, weight_bits: str, activation_bits: str, setting: str) -> float | None:
        """None where it can't be measured."""
        path = self._models.get(model)
        if path is None or self._data is None or method not in (*FLOAT, *METHODS):
            return None
        source = load(path)
        held = open_samples(source, self._data, self._per_class)
        if method in FLOAT:
            return 100 * evaluate(path, held).top1
        chosen = METHODS[method]
        recipe, overrides = chosen.build(weight_bits, activation_bits, setting, self._overrides)
        result = rewrite(
            path,
            recipe=recipe,
            target=chosen.target,
            overrides=overrides,
            calibration=open_samples(source, self._calib, self._calib_per_class),
            samples=self._samples,
            min_sqnr=-math.inf,
        )
        return 100 * evaluate(result.model, held).top1


def print_table(name: str, rows: list[dict[str, str]], measurements: Measurements) -> None:
    print(f"\n## {name}\n\n| model | method | bits W/A | setting | metric | paper | ours | gap |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        ours = None
        if row["metric"] == "Top-1 (%)":
            ours = measurements.top1(row["model"], row["method"], row["wbits"], row["abits"], row["setting"])
        measured = (NOT_MEASURED, "") if ours is None else (f"{ours:.2f}", f"{ours - float(row['value']):+.2f}")
        bits = f"{row['wbits']}/{row['abits']}" if row["wbits"] else ""
        cells = [row["model"], row["method"], bits, row["setting"], row["metric"], row["value"], *measured]
        print(f"| {' | '.join(cells)} |", flush=True)


def model_argument(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: write it as NAME=FILE.onnx, with the name the tables use")
    return name, Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", help='e.g. "EfficientQuant, Table 1" [default: all]')
    parser.add_argument("--model", type=model_argument, action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--calib", help="calibration data")
    parser.add_argument("--data", help="labelled images to measure top-1 on")
    parser.add_argument("--calib-per-class", type=parse_slice)
    parser.add_argument("--per-class", type=parse_slice)
    parser.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="calibration images")
    parser.add_argument("--set", action="append", default=[], metavar="[PASS.]OPTION=VALUE", help="of the recipes")
    args = parser.parse_args()

    tables: dict[str, list[dict[str, str]]] = {}
    with RESULTS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            tables.setdefault(f"{row['paper']}, {row['table']}", []).append(row)
    if args.table and args.table not in tables:
        parser.error(f"--table {args.table}: there are {'; '.join(tables)}")
    known = {row["model"] for rows in tables.values() for row in rows}
    if unknown := [name for name, _ in args.model if name not in known]:
        parser.error(f"--model {unknown[0]}: no table has a model of that name")
    options = set().union(*(option_names(load_recipe(method.recipe)) for method in METHODS.values()))
    if mistaken := [text for text in args.set if text.partition("=")[0] not in options]:
        parser.error(f"--set {mistaken[0]}: none of the recipes has such an option")
    measurements = Measurements(
        dict(args.model), args.calib, args.data, args.calib_per_class, args.per_class, args.set, args.samples
    )
    for name in [args.table] if args.table else tables:
        print_table(name, tables[name], measurements)


if __name__ == "__main__":
    try:
        main()
    except OnnxquantError as error:
        sys.exit(f"error: {error}")
