"""Top-1 of EfficientQuant at 8, 6 and 4 bits, per channel and per tensor, corrected equations against the printed ones.

    python tools/accuracy_table.py models/demo/mobilevit_xxs_digits.onnx \
        --calib models/demo/digits_train.npz --data models/demo/digits.npz

Prints a Markdown table; the figures in the README are this script's. ``--per-class`` and ``--calib-per-class`` choose
among the images of each class, as the commands' option does (CIFAR-10: 4500: and :4500).

The printed equations are kept here and nowhere else: Eq. 2 adds the zero-point to a value from which the minimum was
already taken, Eq. 5 negates the logarithm but not its zero-point.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxquant import load, rewrite
from onnxquant.calibration.dataset import parse_slice
from onnxquant.errors import OnnxquantError
from onnxquant.measure.accuracy import Accuracy, evaluate
from onnxquant.pipeline import canonicalise, open_samples
from onnxquant.plan import QuantizationPlan
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.uniform import UniformQuantizer


def printed_weight(weight: np.ndarray, quantizer: UniformQuantizer) -> np.ndarray:
    """Eqs. 1-3 as printed, in float."""
    others = tuple(i for i in range(weight.ndim) if i != quantizer.axis) if quantizer.axis is not None else None
    minimum = weight.min(axis=others, keepdims=True)
    levels = 2**quantizer.bits - 1
    step = np.maximum((weight.max(axis=others, keepdims=True) - minimum) / levels, np.finfo(np.float32).tiny)
    zero_point = np.rint(-minimum / step)
    codes = np.clip(np.rint((weight - minimum) / step + zero_point), 0, levels)
    return ((codes - zero_point) * step).astype(np.float32)


def insert_printed_log2(graph: gs.Graph, tensor: gs.Variable, quantizer: Log2Quantizer) -> None:
    """Eqs. 4-6 as printed, as nodes behind `tensor`; ε is in the range, or a_min = 0 would make everything NaN."""
    low, high = (math.log2(value + quantizer.epsilon) for value in (quantizer.minimum, quantizer.maximum))
    levels = 2**quantizer.bits - 1
    step = max((high - low) / levels, 1e-8)
    zero_point = round(-low / step)
    readers = list(tensor.outputs)
    value = tensor
    for position, (op, *constants) in enumerate(
        [
            ("Add", quantizer.epsilon), ("Log",), ("Mul", -1 / math.log(2) / step), ("Add", zero_point), ("Round",),
            ("Clip", 0, levels), ("Sub", zero_point), ("Mul", step * math.log(2)), ("Exp",),
        ]
    ):  # fmt: skip
        name = f"{tensor.name}_printed_{position}"
        inputs = [gs.Constant(f"{name}_{i}", np.array(constant, np.float32)) for i, constant in enumerate(constants)]
        result = gs.Variable(name, np.float32)
        graph.nodes.append(gs.Node(op, name, {}, [value, *inputs], [result]))
        value = result
    for reader in readers:
        reader.inputs = [value if used is tensor else used for used in reader.inputs]


def with_printed_equations(path: Path, plan: QuantizationPlan) -> onnx.ModelProto:
    """The model quantized where `plan` says, by the equations as printed."""
    model = load(path)
    canonicalise(model)
    tensors = model.graph.tensors()
    for entry in plan.entries:
        tensor = tensors[entry.tensor]
        if isinstance(entry.quantizer, UniformQuantizer):
            tensor.values = printed_weight(tensor.values, entry.quantizer)
        else:
            insert_printed_log2(model.graph, tensor, entry.quantizer)
    model.graph.toposort(mode="nodes")
    return model.to_proto()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--per-class", type=parse_slice)
    parser.add_argument("--calib-per-class", type=parse_slice)
    parser.add_argument("--no-printed", action="store_true", help="leave out the printed equations")
    args = parser.parse_args()

    model = load(args.model)
    held = open_samples(model, args.data, args.per_class)
    calibration = open_samples(model, args.calib, args.calib_per_class)

    def top1(model: Any) -> str:
        try:
            accuracy: Accuracy = evaluate(model, held)
        except OnnxquantError as error:
            if "NaN or infinite" in str(error):
                return "NaN"
            raise
        return f"{accuracy.top1:.2%}".replace("%", " %")

    def measured(bits: int, granularity: str) -> list[str]:
        options = [f"quantize_conv_weights.granularity={granularity}", f"quantize_conv_weights.bits={bits}"]
        options.append(f"quantize_softmax_log2.bits={bits}")
        result = rewrite(args.model, calibration=calibration, overrides=options, min_sqnr=-math.inf)
        nearest = rewrite(
            args.model, calibration=calibration, min_sqnr=-math.inf,
            overrides=[*options, "quantize_conv_weights.rounding=nearest"],
        )  # fmt: skip
        printed = "" if args.no_printed else top1(with_printed_equations(args.model, result.plan))
        return [top1(result.model), f"{result.report.sqnr_db:.1f} dB", top1(nearest.model), printed]

    print(f"{args.model.name}: fp32 {top1(str(args.model))} on {len(held)} held images, 32 calibration images\n")
    print("| bits | granularity | top-1 | SQNR | top-1, nearest rounding | top-1, equations as printed |")
    print("|---|---|---|---|---|---|")
    for bits in (8, 6, 4):
        for granularity in ("per_channel", "per_tensor"):
            print(f"| {bits} | {granularity} | {' | '.join(measured(bits, granularity))} |", flush=True)


if __name__ == "__main__":
    main()
