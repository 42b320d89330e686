"""What the tests of the passes for what follows Softmax and GELU share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxquant import RewriteResult, rewrite
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.shift_log import ShiftLogQuantizer
from tests.graphs import parse

SPELT_OUT = """
    mlp (float[N, 16, 8] x) => (float[N, 16, 8] y) {
        hidden = MatMul (x, first)
        a = Div (hidden, root)
        b = Erf (a)
        c = Add (b, one)
        d = Mul (hidden, c)
        active = Mul (d, half)
        mixed = MatMul (active, second)
        y = Add (mixed, x)
    }
"""
ONE_NODE = """
    mlp (float[N, 16, 8] x) => (float[N, 16, 8] y) {
        hidden = MatMul (x, first)
        active = Gelu (hidden)
        y = MatMul (active, second)
    }
"""
FORMS = {"spelt out": SPELT_OUT, "one node": ONE_NODE}


def mlp(text: str = ONE_NODE, opset: int = 20) -> onnx.ModelProto:
    """Two layers, and what the text has between them; its GELU writes ``active``."""
    rng = np.random.default_rng(0)
    constants = {"root": np.sqrt(2), "one": 1, "half": 0.5} if "Erf" in text else {}
    return parse(
        text,
        opset,
        first=rng.standard_normal((8, 32)).astype(np.float32),
        second=rng.standard_normal((32, 8)).astype(np.float32),
        **{name: np.float32(value) for name, value in constants.items()},
    )


def tokens() -> NDArray[np.float32]:
    """Inputs for `mlp`: (32, 16, 8)."""
    return np.random.default_rng(3).standard_normal((32, 16, 8)).astype(np.float32)


def quantized(
    folder: Path, step: str, proto: onnx.ModelProto, data: NDArray[np.float32] | None, target: str, **overrides: Any
) -> RewriteResult:
    """The result of a recipe that quantizes what layers read, `step` before the pass for all else.

    Args:
        folder: the recipe is written there.
        step: name of a pass, or several with spaces between them.
        proto: the model.
        data: its inputs.
        target: name of one.
        overrides: options of passes.
    """
    names = ["classify_blocks", "calibrate", "quantize_conv_weights", "quantize_linear_weights", *step.split()]
    path = folder / "recipe.toml"
    path.write_text("\n".join(f'[[pass]]\nname = "{name}"' for name in [*names, "quantize_activations"]))
    options = [f"{option}={value}" for option, value in overrides.items()]
    return rewrite(
        proto, recipe=str(path), calibration=data, target=target, overrides=options, samples=16, min_sqnr=-np.inf
    )


def shifted(result: RewriteResult) -> dict[str, PlanEntry]:
    """The entries of shift-log quantizers by tensor."""
    return {entry.tensor: entry for entry in result.plan.entries if isinstance(entry.quantizer, ShiftLogQuantizer)}
