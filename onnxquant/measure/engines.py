"""TensorRT engine files as models to be measured: what runs them, which inputs they take, and what they compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxquant.calibration.samples import Feed, InputSpec
from onnxquant.deploy.profiles import Shape
from onnxquant.deploy.tensorrt import TensorRT, find_tensorrt, has_gpu
from onnxquant.errors import OnnxquantError
from onnxquant.measure.process import WorkerProcess

SUFFIXES = frozenset({".engine", ".plan", ".trt"})

_RTX_MAGIC = b"vtrt"
"""What TensorRT-RTX begins its engines with."""


@dataclass(frozen=True)
class EngineInput:
    """An input of an engine.

    Attributes:
        spec: its name, type and axes; None for a dynamic one.
        least: smallest shape of the engine's first optimization profile.
        best: the shape that the engine was optimized for.
        most: largest shape.
    """

    spec: InputSpec
    least: Shape
    best: Shape
    most: Shape

    def spec_for(self, shapes: Mapping[str, Sequence[int]]) -> InputSpec:
        """The axes that a feed must be made for: only the batch is free, unless `shapes` says what the input has."""
        if self.spec.name in shapes:
            return self.spec
        return InputSpec(self.spec.name, (*self.spec.shape[:1], *self.best[1:]), self.spec.dtype)


def is_engine(path: Path) -> bool:
    """Whether a file is named like a TensorRT engine."""
    return path.suffix.lower() in SUFFIXES


def engine_runtime(path: Path) -> TensorRT:
    """The TensorRT that runs the engine `path`.

    Raises:
        OnnxquantError: the file can't be read, that TensorRT isn't installed, or there is no GPU.
    """
    try:
        with path.open("rb") as file:
            is_rtx = file.read(len(_RTX_MAGIC)) == _RTX_MAGIC
    except OSError as error:
        raise OnnxquantError(f"{path}: can't be read ({error.strerror or error})") from None
    try:
        tensorrt = find_tensorrt("tensorrt-rtx" if is_rtx else "tensorrt")
    except OnnxquantError as error:
        raise OnnxquantError(f"{path}: is {'an' if is_rtx else 'no'} engine of TensorRT-RTX, and {error}") from None
    if not has_gpu():
        raise OnnxquantError(
            f"{path}: an engine runs on a GPU only, and there is none here; run onnxquant on the machine that has it, "
            "or measure the .onnx file"
        )
    return tensorrt


def engine_inputs(path: Path, timeout: float = 600) -> list[EngineInput]:
    """The inputs that the engine `path` takes: it is loaded for that, in a process of its own.

    Raises:
        OnnxquantError: it can't be loaded, or takes longer than `timeout` seconds.
    """
    tensorrt = engine_runtime(path)
    with WorkerProcess(path, timeout) as process:
        _, _, inputs = process.ask("load_engine", str(path), tensorrt.module.__name__)
    return [
        EngineInput(
            InputSpec(name, tuple(size if size >= 0 else None for size in shape), np.dtype(dtype)),
            *(tuple(bound) for bound in bounds),
        )
        for name, dtype, shape, bounds in inputs
    ]


def run_engine(path: Path, feeds: Iterable[Feed], timeout: float = 600) -> list[dict[str, NDArray[Any]]]:
    """What the engine `path` computes, by output name, for each of `feeds`: it runs in a process of its own.

    Args:
        path: of the engine.
        feeds: an array for every input, of a shape that the engine takes.
        timeout: seconds that loading or one run may take.

    Raises:
        OnnxquantError: it can't be loaded or run, or takes longer than `timeout`.
    """
    tensorrt = engine_runtime(path)
    with WorkerProcess(path, timeout) as process:
        process.ask("load_engine", str(path), tensorrt.module.__name__)
        return [process.ask("run", dict(feed)) for feed in feeds]


def require_in_profile(path: Path, inputs: Sequence[EngineInput], feed: Feed) -> None:
    """Make sure that an engine takes a feed.

    Raises:
        OnnxquantError: a shape is outside of what the engine was built for.
    """
    for entry in inputs:
        shape = feed[entry.spec.name].shape
        if any(not low <= size <= high for low, size, high in zip(entry.least, shape, entry.most, strict=True)):
            given, low, high = ("x".join(map(str, sizes)) for sizes in (shape, entry.least, entry.most))
            raise OnnxquantError(
                f"{path}: input {entry.spec.name} can't be {given}, the engine takes {low} to {high}; change --batch "
                "or --shape, or build it for that"
            )
