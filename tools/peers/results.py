"""What `bench_peers.py` finds out about a quantized model."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import onnx
from peers.processes import Failed, measured

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.graph.model import read_proto
from onnxquant.measure.metrics import sqnr_db
from onnxquant.measure.sessions import Runner
from onnxquant.measure.weights import initializers
from onnxquant.targets import load_target
from onnxquant.targets.check import check_target


def centred_sqnr_db(reference: np.ndarray, result: np.ndarray) -> float:
    """SQNR with the reference's mean over the samples, axis 0, removed from the signal; in dB.

    Equal to the SQNR of the centred reference and the result less the same mean.
    """
    mean = reference.mean(axis=0, dtype=np.float64)
    return sqnr_db(reference - mean, result - mean)


def outputs(model: Path, data: Dataset) -> list[np.ndarray]:
    """Every output of optimised ONNX Runtime, the samples on axis 0, run one by one."""
    runner = Runner(model, model.name)
    names = list(runner.outputs)
    runs = [runner.run(batch, names) for batch in batches(data, 1, input_specs(read_proto(model)))]
    return [np.concatenate(values) for values in zip(*runs, strict=True)]


def float_weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of float initializers and constants with two or more axes: biases, scales and norms' have one at most."""
    constants = (attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute)
    floats = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.DOUBLE: 8}
    tensors = (tensor for tensor in (*initializers(model.graph), *constants) if len(tensor.dims) > 1)
    return sum(math.prod(tensor.dims) * floats.get(tensor.data_type, 0) for tensor in tensors)


def tensorrt_rtx(path: Path, work: Path, timeout: float) -> str:
    """What TensorRT-RTX makes of a model; in a process of its own, which its parser may end."""
    polygraphy = str(Path(sys.executable).with_name("polygraphy"))
    command = [polygraphy, "convert", str(path.absolute()), "--convert-to", "trt", "--compute-capabilities", "8.6"]
    try:
        measured([*command, "-o", "out.plan"], work, timeout, POLYGRAPHY_USE_TENSORRT_RTX="1")
    except Failed as error:
        return f"refuses: {str(error).rpartition(': ')[2].partition('. ')[0]}"  # the parser's own words come last
    refusals = check_target(read_proto(path), load_target("tensorrt-rtx"))
    return f"builds, but {refusals[0].message.partition(';')[0]}" if refusals else "builds"
