"""The one place that imports TensorRT: full TensorRT from 8.6 on, or TensorRT-RTX, which share one Python API.

Both are optional and heavy, so nothing is imported before `find_tensorrt` is called.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from onnxquant.errors import OnnxquantError, first_line

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Modules by the name that ``--runtime`` takes; the first that is installed is used where none is asked for."""

MINIMUM_VERSION = (8, 6)
"""The oldest full TensorRT that onnxquant knows: the first with hardware compatibility levels."""

INSTALL = "install it with pip install 'onnxquant[tensorrt-rtx]', or NVIDIA's tensorrt"

_CUDA_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT.

    Attributes:
        module: `tensorrt` or `tensorrt_rtx`.
        name: for people, "TensorRT-RTX 1.7.1".
        version: "1.7.1.116".
        is_rtx: whether it is TensorRT-RTX.
        logger: an `ILogger` that keeps messages in `errors` and `warnings`; TensorRT wants one for the whole process.
    """

    module: Any
    name: str
    version: str
    is_rtx: bool
    logger: Any


def find_tensorrt(runtime: str | None = None) -> TensorRT:
    """TensorRT as it is installed.

    Args:
        runtime: a key of `MODULES`; None for the first that there is.

    Raises:
        OnnxquantError: it is not installed, too old, or can't be imported.
    """
    wanted = list(MODULES) if runtime is None else [runtime]
    broken: tuple[str, Exception] | None = None
    for name in wanted:
        try:
            return _open(MODULES[name])
        except ModuleNotFoundError as error:
            if error.name != MODULES[name]:
                broken = broken or (name, error)
        except OnnxquantError:
            raise
        except Exception as error:  # libraries that are missing or don't fit the driver show as several types
            broken = broken or (name, error)
    if broken:
        raise OnnxquantError(f"{broken[0]} is installed, but can't be imported: {first_line(broken[1])}")
    if runtime is None:
        raise OnnxquantError(f"neither TensorRT nor TensorRT-RTX is installed; {INSTALL}")
    raise OnnxquantError(f"{runtime} is not installed; install it with pip install 'onnxquant[{runtime}]'")


@cache
def _open(name: str) -> TensorRT:
    module = import_module(name)
    version, is_rtx = str(module.__version__), name == "tensorrt_rtx"
    parts = re.findall(r"\d+", version)
    label = f"{'TensorRT-RTX' if is_rtx else 'TensorRT'} {'.'.join(parts[:3])}"
    if not is_rtx and tuple(map(int, parts[:2])) < MINIMUM_VERSION:
        minimum = ".".join(map(str, MINIMUM_VERSION))
        raise OnnxquantError(f"{label} is too old, onnxquant needs {minimum} or later; upgrade tensorrt")
    logger = _logger(module)
    if hasattr(module, "init_libnvinfer_plugins"):  # operators that TensorRT itself implements as plugins
        module.init_libnvinfer_plugins(logger, "")
    return TensorRT(module, label, version, is_rtx, logger)


def _logger(module: Any) -> Any:
    class Logger(module.ILogger):
        """Keeps messages instead of printing them."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == module.ILogger.WARNING:
                self.warnings.append(message)

    return Logger()


def first_error(tensorrt: TensorRT) -> str:
    """What TensorRT said went wrong: later errors follow from the first."""
    return plain_message(next(iter(tensorrt.logger.errors), "it didn't say why"))


def plain_message(said: str) -> str:
    """One of TensorRT's messages as a line, without the places in its source.

    ``IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (What. In f at /_src/a.cpp:9)`` becomes
    ``API Usage Error (What.)``.
    """
    said = re.sub(r"^.*?Error Code \d+: ", "", (said.strip().splitlines() or [""])[0])
    return re.sub(r"\s*\bIn \w+ at /\S+?:\d+\s*", "", said).strip()


@cache
def gpu_compute_capability() -> str | None:
    """Of the first GPU, "8.6" for example; None where there is no GPU that an engine could be run on.

    The driver is asked: it is there wherever a GPU can be used, the CUDA toolkit need not be.
    """
    try:
        if sys.platform == "win32":
            cuda = ctypes.WinDLL("nvcuda.dll")
        else:
            cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    parts = []
    for attribute in _CUDA_COMPUTE_CAPABILITY:
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        parts.append(str(value.value))
    return ".".join(parts)


def has_gpu() -> bool:
    """Whether this machine has a GPU to run engines on."""
    return gpu_compute_capability() is not None
