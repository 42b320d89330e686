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
from functools import cache
from pathlib import Path

from onnxquant import load, rewrite
from onnxquant.calibration.dataset import open_dataset, parse_slice
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.measure.accuracy import evaluate
from onnxquant.preprocessing import Preprocessing, classes_from_metadata
from onnxquant.recipes import load_recipe

RESULTS = Path(__file__).parents[1] / "models" / "paper_results.csv"


def efficientquant(weight_bits: str, activation_bits: str, _: str) -> list[str]:
    return [f"quantize_conv_weights.bits={weight_bits}", f"quantize_softmax_log2.bits={activation_bits}"]


def every_layer(weight_bits: str, activation_bits: str, _: str) -> list[str]:
    weights = [f"quantize_{kind}_weights.bits={weight_bits}" for kind in ("conv", "linear")]
    return [*weights, f"quantize_activations.bits={activation_bits}"]


def with_twins(weight_bits: str, activation_bits: str, setting: str) -> list[str]:
    return [*every_layer(weight_bits, activation_bits, setting), f"quantize_twin_uniform.bits={activation_bits}"]


def ablation(weight_bits: str, activation_bits: str, setting: str) -> list[str]:
    """Q-HyViT, Table 3: without the hybrid objective each layer is judged by itself, as in PTQ4ViT."""
    choices = dict(choice.split("=") for choice in setting.split(";"))
    granularity = '["layer", "channel"]' if choices["granularity"] == "yes" else '["layer"]'
    schemes = '["symmetric", "asymmetric"]' if choices["scheme"] == "yes" else '["symmetric"]'
    options = {"granularity": granularity, "schemes": schemes}
    options["bridges"] = str(choices["scale_factor"] == "yes").lower()
    searched = [f"search_scales.{name}={value}" for name, value in options.items()]
    return [*every_layer(weight_bits, activation_bits, setting), *searched]


RECIPES: dict[str, tuple[str, str, Callable[[str, str, str], list[str]]]] = {
    "EfficientQuant": ("efficientquant", "onnxruntime", efficientquant),
    "EasyQuant": ("easyquant", "reference", every_layer),
    "PTQ4ViT": ("ptq4vit", "reference", with_twins),
    "Q-HyViT": ("q-hyvit", "reference", every_layer),
    "Q-HyViT ablation": ("q-hyvit", "reference", ablation),
}
"""A paper's method -> our recipe, target and options, given the bits of weights and activations and the setting."""

NOT_MEASURED = "not measured"


class Measurements:
    """Top-1 in percent, measured once for every model, method and number of bits that the tables ask for.

    Args:
        models: file of each model, by the papers' name.
        calib: calibration data; without it ranges are data-free.
        data: labelled images; without them nothing is measured.
        calib_per_class: positions of each class to calibrate on.
        per_class: positions of each class to evaluate on.
        searching: options of `search_scales`, ``name=value``.
    """

    def __init__(
        self,
        models: dict[str, Path],
        calib: str | None,
        data: str | None,
        calib_per_class: slice | None,
        per_class: slice | None,
        searching: list[str],
    ) -> None:
        self._searching = [f"search_scales.{option}" for option in searching]
        self._models, self._calib, self._data = models, calib, data
        self._calib_per_class, self._per_class = calib_per_class, per_class
        self.top1 = cache(self._top1)

    def _top1(self, model: str, method: str, weight_bits: str, activation_bits: str, setting: str) -> float | None:
        """None where it can't be measured."""
        path = self._models.get(model)
        if path is None or self._data is None or (method != "FP32" and method not in RECIPES):
            return None
        held = self._open(path, self._data, self._per_class)
        if method == "FP32":
            return 100 * evaluate(path, held).top1
        recipe, target, options = RECIPES[method]
        overrides = options(weight_bits, activation_bits, setting)
        if any(step["name"] == "search_scales" for step in load_recipe(recipe).passes):
            overrides += self._searching
        calibration = self._open(path, self._calib, self._calib_per_class) if self._calib else None
        result = rewrite(
            path, recipe=recipe, target=target, overrides=overrides, calibration=calibration, min_sqnr=-math.inf
        )
        return 100 * evaluate(result.model, held).top1

    def _open(self, path: Path, source: str, per_class: slice | None) -> Dataset:
        model = load(path)
        preprocessing = Preprocessing.from_metadata(model.metadata, model.name)
        classes = classes_from_metadata(model.metadata, model.name)
        return open_dataset(source, input_specs(model.graph), preprocessing, per_class, classes)


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
    parser.add_argument("--search", action="append", default=[], metavar="OPTION=VALUE", help="of search_scales")
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
    measurements = Measurements(
        dict(args.model), args.calib, args.data, args.calib_per_class, args.per_class, args.search
    )
    for name in [args.table] if args.table else tables:
        print_table(name, tables[name], measurements)


if __name__ == "__main__":
    try:
        main()
    except OnnxquantError as error:
        sys.exit(f"error: {error}")
