"""Where TensorRT's versions differ. What a version can do is asked of its module, not told from its number.

8.6 has weakly typed networks, which need flags for the types that the ONNX model holds; from 10 on networks can be
strongly typed, and are nothing else from 11 on and in TensorRT-RTX. TensorRT-RTX builds for any GPU that it is told,
full TensorRT for the present one, or for all from compute capability 8.0 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxquant.deploy.progress import progress_monitor
from onnxquant.deploy.tensorrt import TensorRT, gpu_compute_capability
from onnxquant.errors import OnnxquantError
from onnxquant.targets import Target, load_target


def require_builder(tensorrt: TensorRT) -> None:
    """Make sure that there is what a build takes.

    Raises:
        OnnxquantError: full TensorRT, and no GPU.
    """
    if not tensorrt.is_rtx and gpu_compute_capability() is None:
        raise OnnxquantError(
            f"{tensorrt.name} builds on a GPU only, and there is none here; TensorRT-RTX needs none: install it with "
            "pip install 'onnxquant[tensorrt-rtx]' and give --runtime tensorrt-rtx"
        )


def target_of(tensorrt: TensorRT) -> Target:
    """The target that describes what this TensorRT takes."""
    if tensorrt.is_rtx:
        return load_target("tensorrt-rtx")
    major = int(tensorrt.version.split(".")[0])
    return load_target("tensorrt-8.6" if major < 10 else "tensorrt-10" if major == 10 else "tensorrt-11")


def network_flags(tensorrt: TensorRT) -> int:
    """For `create_network`: explicit batch and strong typing where they are a choice."""
    kinds = tensorrt.module.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(kinds, flag)) for flag in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(kinds, flag))


def allow_types(tensorrt: TensorRT, config: Any, network: Any) -> None:
    """Allow the types of a weakly typed network's layers; those of a strongly typed one are what they are."""
    if hasattr(tensorrt.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return
    kinds = tensorrt.module.LayerType
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if any(layer.type in (kinds.QUANTIZE, kinds.DEQUANTIZE) for layer in layers):
        config.set_flag(tensorrt.module.BuilderFlag.INT8)
    if any(layer.get_output(0).dtype == tensorrt.module.DataType.HALF for layer in layers):
        config.set_flag(tensorrt.module.BuilderFlag.FP16)


def set_gpus(tensorrt: TensorRT, config: Any, wanted: Sequence[str]) -> None:
    """Tell the builder which GPUs the engine is for, by compute capability.

    Raises:
        OnnxquantError: it can't build for one of them.
    """
    if not wanted:
        return
    if hasattr(config, "num_compute_capabilities"):
        known = tensorrt.module.ComputeCapability.__members__
        config.num_compute_capabilities = len(wanted)
        for index, text in enumerate(wanted):
            member = known.get(f"SM{text.replace('.', '')}")
            if member is None or not config.set_compute_capability(member, index):
                names = [f"{key[2:-1]}.{key[-1]}" for key in known if key.startswith("SM")]
                raise OnnxquantError(f"--compute-capability {text}: {tensorrt.name} builds for {', '.join(names)} only")
        return
    present = gpu_compute_capability() or "0.0"
    if set(wanted) == {present}:
        return
    if min(map(float, (*wanted, present))) < 8:
        raise OnnxquantError(
            f"--compute-capability {' '.join(wanted)}: {tensorrt.name} builds for the GPU here ({present}), and for "
            "others only where all are 8.0 or later; build on the GPU that the engine is for"
        )
    config.hardware_compatibility_level = tensorrt.module.HardwareCompatibilityLevel.AMPERE_PLUS


def load_timing_cache(tensorrt: TensorRT, config: Any, path: Path) -> None:
    """Give the builder what `path` holds; an empty cache where there is no such file.

    Raises:
        OnnxquantError: this TensorRT has no timing cache, or the file can't be read or is of another one.
    """
    if tensorrt.is_rtx:  # its functions are there, and do nothing
        raise OnnxquantError(
            f"--timing-cache {path}: {tensorrt.name} has none, since it times nothing when it builds; leave it out"
        )
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise OnnxquantError(f"--timing-cache {path}: can't be read ({error.strerror or error})") from None
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise OnnxquantError(f"--timing-cache {path}: is of another TensorRT or GPU; delete it, or give another path")


def set_monitor(tensorrt: TensorRT, config: Any, progress: Callable[[int, int], None]) -> Any | None:
    """Have the builder tell its progress; returns the monitor, None where TensorRT has none."""
    if not hasattr(config, "progress_monitor"):
        return None
    config.progress_monitor = monitor = progress_monitor(tensorrt.module, progress)
    return monitor
