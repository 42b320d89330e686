"""The extension of `polygraphy run`: ``--onnxquant RECIPE`` is one more runner.

polygraphy loads this module whenever any of its tools starts: what is heavy waits for the loader.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from polygraphy.logger import G_LOGGER
from polygraphy.tools.args import ComparatorCompareArgs, OnnxLoadArgs, OnnxrtSessionArgs
from polygraphy.tools.args import util as args_util
from polygraphy.tools.args.base import BaseRunnerArgs
from polygraphy.tools.script import Script, make_invocable

from onnxquant.defaults import DEFAULT_MIN_SQNR, DEFAULT_TARGET

COMPARE_SCRIPT = Path(__file__).with_name("compare_outputs.py")

RUNNER = "onnxquant"
"""The option that selects the runner, without its dashes."""


def argument_groups() -> list[BaseRunnerArgs]:
    """What the entry point `polygraphy.run.plugins` names: the groups of options to add."""
    return [OnnxquantRunnerArgs()]


class _SelectWithRecipe(argparse.Action):
    """Store the recipe, and select the runner as the options of polygraphy's own runners do."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.runners = [*namespace.runners, RUNNER]


class OnnxquantRunnerArgs(BaseRunnerArgs):
    """
    onnxquant: quantizing the model with onnxquant and running the result in ONNX Runtime.

    Depends on:

        - RunnerSelectArgs
        - OnnxLoadArgs
        - OnnxrtSessionArgs
        - ComparatorCompareArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        """The runner's name for people, and its option."""
        return "onnxquant in ONNX-Runtime", RUNNER

    def add_parser_args_impl(self) -> None:
        """Add the options."""
        self.group.conflict_handler = "resolve"  # polygraphy has added --onnxquant by now, as a flag without a value
        self.group.add_argument(
            f"--{RUNNER}",
            metavar="RECIPE",
            dest="onnxquant_recipe",
            action=_SelectWithRecipe,
            help="Quantize the model with this recipe (a name, or the path of a .toml file) and run the result in "
            "ONNX-Runtime. Unless another comparison is chosen, outputs then match from a signal to quantization "
            f"noise ratio of {DEFAULT_MIN_SQNR:g} dB (or ONNXQUANT_MIN_SQNR) upwards.",
        )
        self.group.add_argument(
            "--calib",
            metavar="DATA",
            help="Data for --onnxquant to calibrate on: image folder or zip (the model's metadata says how they are "
            "preprocessed), .npz, .npy, polygraphy JSON or load_data() script.",
        )
        self.group.add_argument(
            "--onnxquant-target",
            metavar="TARGET",
            help=f"Runtime that --onnxquant quantizes for. Defaults to {DEFAULT_TARGET}.",
        )

    def parse_impl(self, args: argparse.Namespace) -> None:
        """Read the options.

        Attributes:
            recipe (str): name, or absolute path; None where the runner isn't selected.
            calibration (str): value of ``--calib``, absolute.
            target (str): value of ``--onnxquant-target``.
            default_comparison (bool): whether the user chose no comparison.
        """
        recipe, calibration = args_util.get(args, "onnxquant_recipe"), args_util.get(args, "calib")
        # As polygraphy does with the model's path, so that a generated script runs in any folder.
        self.recipe = os.path.abspath(recipe) if recipe and recipe.endswith(".toml") else recipe
        self.calibration = os.path.abspath(calibration) if calibration else None
        self.target = args_util.get(args, "onnxquant_target")
        if self.recipe is None and (self.calibration or self.target):
            option = "--calib" if self.calibration else "--onnxquant-target"
            G_LOGGER.critical(f"{option}: is for --onnxquant; choose a recipe with --onnxquant RECIPE")
        if args_util.get(args, "runners").count(RUNNER) > 1:
            G_LOGGER.critical("--onnxquant: given twice; compare one recipe at a time")
        chosen = [args_util.get(args, option) for option in ("atol", "rtol", "compare_func_script")]
        untouched = args_util.get(args, "compare") is self.group.get_default("compare")
        self.default_comparison = untouched and not any(chosen)

    def add_to_script_impl(self, script: Script) -> None:
        """Add the loaders and the runner."""
        script.add_import(imports=["QuantizeOnnx"], frm="onnxquant.polygraphy")
        script.add_import(imports=["BytesFromOnnx"], frm="polygraphy.backend.onnx")
        script.add_import(imports=["OnnxrtRunner"], frm="polygraphy.backend.onnxrt")
        model = self.arg_groups[OnnxLoadArgs].add_to_script(script)
        quantize = make_invocable(
            "QuantizeOnnx", model, recipe=self.recipe, calibration=self.calibration, target=self.target
        )
        serialized = make_invocable("BytesFromOnnx", script.add_loader(quantize, "quantize_onnx"))
        session = self.arg_groups[OnnxrtSessionArgs].add_to_script(
            script, script.add_loader(serialized, "quantized_bytes")
        )
        script.add_runner(make_invocable("OnnxrtRunner", session, name=f"onnxquant {Path(self.recipe).stem}"))
        if self.default_comparison:
            compare = self.arg_groups[ComparatorCompareArgs]
            compare.compare_func_script, compare.compare_func_name = str(COMPARE_SCRIPT), "compare_outputs"
