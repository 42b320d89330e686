"""Quantize a model with another tool, inside that tool's virtual environment; `bench_peers.py` starts it.

    python quantize.py PEER model.onnx calib.npz out.onnx

Every function of `PEERS` is what the tool's own documentation shows for int8 weights and activations of an ONNX vision
model. Samples come one at a time, as from a data loader; calib.npz holds an array (samples, ...) for each input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

Feeds = list[dict[str, np.ndarray]]
TORCH = "torch==2.13.0"  # its CPU wheel will do


class Reader:
    """ONNX Runtime's CalibrationDataReader, which several tools have taken over."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.rewind()

    def __len__(self) -> int:
        return len(self.feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.iterator, None)

    def rewind(self) -> None:
        self.iterator: Iterator[dict[str, np.ndarray]] = iter(self.feeds)


def onnxruntime(model: str, feeds: Feeds, output: str, method: str = "MinMax", symmetric: bool = False) -> None:
    """uint8 activations and per-channel int8 weights; symmetric: the options that its TensorRT guide gives."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = f"{output}.prepared"
    quant_pre_process(model, prepared, skip_symbolic_shape=find_spec("sympy") is None)
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False} if symmetric else {}
    q.quantize_static(
        prepared, output, Reader(feeds), per_channel=True, calibrate_method=q.CalibrationMethod[method],
        activation_type=q.QuantType.QInt8 if symmetric else q.QuantType.QUInt8, extra_options=options,
    )  # fmt: skip


def onnxsim(model: str, feeds: Feeds, output: str) -> None:
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(model))
    onnx.save(onnxsim.quantize_static(simplified, feeds), output)


def nncf(model: str, feeds: Feeds, output: str, transformer: bool = False) -> None:
    import nncf
    import onnx

    options = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(feeds), subset_size=len(feeds), **options), output)


def modelopt(model: str, feeds: Feeds, output: str) -> None:
    """By default what isn't quantized becomes float16, for TensorRT; float32 is what the others leave it in."""
    from modelopt.onnx.quantization import quantize

    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    quantize(model, calibration_data=data, calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=output)


def neural_compressor(model: str, feeds: Feeds, output: str) -> None:
    from neural_compressor import PostTrainingQuantConfig
    from neural_compressor.quantization import fit

    class Loader:
        batch_size = 1

        def __iter__(self) -> Iterator[tuple[Any, int]]:
            inputs = [list(feed.values()) for feed in feeds]
            return ((values[0] if len(values) == 1 else values, 0) for values in inputs)

    fit(model, PostTrainingQuantConfig(quant_format="QDQ"), calib_dataloader=Loader()).save(output)


def onnx_neural_compressor(model: str, feeds: Feeds, output: str) -> None:
    from onnx_neural_compressor.data_reader import CalibrationDataReader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class OwnReader(Reader, CalibrationDataReader):
        pass

    quantize(model, output, config.StaticQuantConfig(OwnReader(feeds), quant_format=QuantFormat.QDQ))


def quark(model: str, feeds: Feeds, output: str) -> None:
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    ModelQuantizer(Config(global_quant_config=get_default_config("A8W8"))).quantize_model(model, output, Reader(feeds))


def ppq(model: str, feeds: Feeds, output: str, package: str = "ppq") -> None:
    """PPQ, and esp-ppq, which goes on from it."""
    import torch

    api, core = import_module(f"{package}.api"), import_module(package)
    (name,) = feeds[0]
    batches = [torch.from_numpy(feed[name]) for feed in feeds]
    graph = api.quantize_onnx_model(
        model, batches, calib_steps=len(batches), input_shape=list(batches[0].shape), device="cpu",
        platform=core.TargetPlatform.TRT_INT8, setting=core.QuantizationSettingFactory.default_setting(),
    )  # fmt: skip
    api.export_ppq_graph(graph, core.TargetPlatform.ONNXRUNTIME, output)


def aimet(model: str, feeds: Feeds, output: str) -> None:
    import aimet_onnx
    import onnx
    from aimet_onnx.quantsim import QuantizationSimModel

    sim = QuantizationSimModel(onnx.load(model), param_type=aimet_onnx.int8, activation_type=aimet_onnx.int8)
    sim.compute_encodings(feeds)
    onnx.save(sim.to_onnx_qdq(), output)


@dataclass(frozen=True)
class Peer:
    """A tool with its settings.

    Attributes:
        requirements: what pip installs, the tool itself first.
        function: writes the quantized model.
        options: of `function`.
    """

    requirements: tuple[str, ...]
    function: Callable[..., None]
    options: dict[str, Any]


def _peer(function: Callable[..., None], *requirements: str, **options: Any) -> Peer:
    return Peer(requirements, function, options)


_ONNX, _RUNTIME = "onnx==1.23.2", "onnxruntime==1.31.1"
_ORT = (_RUNTIME, _ONNX, "sympy==1.14.0")
_NNCF = ("nncf==3.4.0", _ONNX, _RUNTIME)
_FORGOTTEN = ("prettytable==3.18.0", "scipy==1.17.1", "six==1.17.0", "numpy==1.26.4")  # by Intel's two tools

PEERS = {
    "onnxruntime-minmax": _peer(onnxruntime, *_ORT),
    "onnxruntime-entropy": _peer(onnxruntime, *_ORT, method="Entropy"),
    "onnxruntime-percentile": _peer(onnxruntime, *_ORT, method="Percentile"),
    "onnxruntime-symmetric": _peer(onnxruntime, *_ORT, symmetric=True),
    "onnxsim": _peer(onnxsim, "onnxsim==0.8.1", _ONNX, _RUNTIME),
    "nncf": _peer(nncf, *_NNCF),
    "nncf-transformer": _peer(nncf, *_NNCF, transformer=True),
    "modelopt": _peer(modelopt, "nvidia-modelopt[onnx]==0.47.0", "onnx==1.21.0", TORCH),
    "neural-compressor": _peer(
        neural_compressor, "neural-compressor==2.6", "onnx==1.16.2", "onnxruntime==1.18.1", *_FORGOTTEN
    ),
    "onnx-neural-compressor": _peer(
        onnx_neural_compressor, "onnx-neural-compressor==1.0", _ONNX, _RUNTIME, *_FORGOTTEN
    ),
    "quark": _peer(quark, "amd-quark==0.13", "onnx==1.22.0", _RUNTIME, TORCH),
    "ppq": _peer(ppq, "ppq==0.6.6", "onnx==1.14.1", "protobuf==3.20.3", "numpy==1.23.5", TORCH),
    "esp-ppq": _peer(ppq, "esp-ppq==1.3.12", "onnx==1.19.1", _RUNTIME, TORCH, package="esp_ppq"),
    "aimet": _peer(aimet, "aimet-onnx==2.42.0", _ONNX, _RUNTIME, TORCH),
}
"""By name. A tool's variants share one virtual environment."""


def main() -> None:
    name, model, data, output = sys.argv[1:]
    with np.load(data) as arrays:
        samples = dict(arrays)
    count = len(next(iter(samples.values())))
    feeds = [{key: values[i : i + 1] for key, values in samples.items()} for i in range(count)]
    peer = PEERS[name]
    peer.function(model, feeds, output, **peer.options)


if __name__ == "__main__":
    main()
