"""ONNX Runtime sessions for measuring, and running them so that errors say which model and which sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxquant.calibration.batching import Batch
from onnxquant.errors import OnnxquantError, first_line
from onnxquant.graph.model import PROTOBUF_LIMIT, quiet_session_options, read_proto

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto"


class Runner:
    """An optimised CPU session.

    Args:
        source: path or proto.
        name: what messages call it.
        threads: that ONNX Runtime may use; its own choice by default.
        arena: whether it keeps the memory of its largest run for the next.

    Raises:
        OnnxquantError: ONNX Runtime refuses the model.
    """

    def __init__(self, source: ModelSource, name: str, threads: int | None = None, arena: bool = True) -> None:
        self.name = name
        options = quiet_session_options()
        options.intra_op_num_threads = threads or 0
        options.enable_cpu_mem_arena = arena
        if isinstance(source, onnx.ModelProto) and source.ByteSize() > PROTOBUF_LIMIT:
            raise OnnxquantError(
                f"{name}: too large to run from memory; give the path of its file, and compare no layers"
            )
        try:
            data = source.SerializeToString() if isinstance(source, onnx.ModelProto) else Path(source)
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise OnnxquantError(f"{name}: ONNX Runtime refuses the model: {first_line(error)}") from None
        self.outputs: dict[str, str] = {output.name: output.type for output in self._session.get_outputs()}

    def run(self, batch: Batch, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """The values of `outputs`, without the rows that belong to a batch's padding."""
        try:
            values = self._session.run(list(outputs), batch.feeds)
        except Exception as error:  # see above
            raise OnnxquantError(f"{self.name}: running it on {batch.names[0]} failed: {first_line(error)}") from None
        return [batch.without_padding(value) for value in values]


def read_model(source: ModelSource) -> tuple[onnx.ModelProto, str]:
    """The proto and the name that messages use.

    Raises:
        OnnxquantError: a path that can't be read as ONNX.
    """
    if isinstance(source, onnx.ModelProto):
        return source, source.graph.name or "model"
    return read_proto(source), str(source)
