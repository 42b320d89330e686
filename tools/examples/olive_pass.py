"""onnxquant as a pass of Olive, Microsoft's model optimisation workflow: pip install olive-ai

    python tools/examples/olive_pass.py model.onnx calib.npz build/olive

runs a workflow of this pass alone and writes ``build/olive/model.onnx``. In a workflow of your own, give `olive run` a
package config (``--package-config``) that holds `PACKAGE_ENTRY`, and add the pass to the run config::

    "passes": {"quantize": {"type": "OnnxquantRewrite", "recipe": "efficientquant", "calibration": "calib.npz"}}
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_config, model_proto_to_olive_model
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.workflows import run

import onnxquant

PACKAGE_ENTRY = {
    "OnnxquantRewrite": {
        "module_path": f"{Path(__file__).stem}.OnnxquantRewrite",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
    }
}
"""Where Olive finds the pass: this file must be importable."""


class OnnxquantRewrite(Pass):
    """Quantize an ONNX model with a recipe of onnxquant."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        options = {
            "recipe": ("efficientquant", "Name of a recipe, or path of its .toml file."),
            "calibration": (None, "Path of the calibration data."),
            "target": ("onnxruntime", "Runtime the result is for."),
        }
        parameters = {
            name: PassConfigParam(type_=str, default_value=default, description=description)
            for name, (default, description) in options.items()
        }
        return {**parameters, **get_external_data_config()}

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        path = resolve_onnx_path(output_model_path)
        result = onnxquant.rewrite(
            model.model_path, recipe=config.recipe, calibration=config.calibration, target=config.target
        )
        return model_proto_to_olive_model(result.model, path, config)


def main() -> None:
    """Run a workflow of one pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    package = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text("utf-8"))
    package["passes"].update(PACKAGE_ENTRY)
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": str(arguments.model)},
        "passes": {"quantize": {"type": "OnnxquantRewrite", "calibration": str(arguments.calibration)}},
        "output_dir": str(arguments.folder),
        "cache_dir": str(arguments.folder / "cache"),
        "clean_cache": True,
    }
    run(workflow, package_config=package)


if __name__ == "__main__":
    main()
