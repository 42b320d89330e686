"""What a data set is: samples that are made when asked for, checked against the inputs of the model they are for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxquant.errors import OnnxquantError

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: each axis is a fixed size, the name of a dynamic one, or None."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        """For messages: ``x float32 (N, 3, 224, 224)``."""
        return f"{self.name} {self.dtype} ({', '.join('?' if axis is None else str(axis) for axis in self.shape)})"


def input_specs(model: onnx.ModelProto | gs.Graph) -> list[InputSpec]:
    """The inputs that must be fed, in order; an initializer listed among the inputs is not one.

    Raises:
        OnnxquantError: an input is not a tensor or has no known rank.
    """
    if isinstance(model, onnx.ModelProto):
        return _proto_specs(model.graph)
    for tensor in model.inputs:
        if tensor.shape is None or tensor.dtype is None:
            raise _untyped(tensor.name)
    return [InputSpec(tensor.name, _axes(tensor.shape), np.dtype(tensor.dtype)) for tensor in model.inputs]


def _proto_specs(graph: onnx.GraphProto) -> list[InputSpec]:
    initialized = {initializer.name for initializer in graph.initializer}
    specs = []
    for value in graph.input:
        if value.name in initialized:
            continue
        tensor = value.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape"):
            raise _untyped(value.name)
        axes = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in tensor.shape.dim]
        specs.append(InputSpec(value.name, _axes(axes), onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    return specs


def _axes(shape: Sequence[int | str | None]) -> tuple[int | str | None, ...]:
    # Exporters write 0, -1 and "" for a dynamic axis as well.
    return tuple(None if not axis or (isinstance(axis, int) and axis < 0) else axis for axis in shape)


def _untyped(name: str) -> OnnxquantError:
    return OnnxquantError(
        f"model: input {name} is not a tensor of known type and rank; export the model with input shapes"
    )


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        name: what messages call it: a file's path, or ``data.npz[12]``.
        feeds: an array for every input of the model, with a leading batch axis of 1 (of more, where the source can't be
            split).
        label: index of its class, where that is known.
    """

    name: str
    feeds: dict[str, NDArray[Any]]
    label: int | None = None


class Dataset(ABC):
    """A sequence of samples, each made when it is asked for, so that memory does not grow with their number.

    Attributes:
        name: what messages call the source.
        labels: class index of every sample; None where the source has none.
    """

    name: str
    labels: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample:
        """Sample `index`, from 0.

        Raises:
            OnnxquantError: it can't be read, or holds NaN or infinite values; the message names it.
            IndexError: there are not so many.
        """

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class Subset(Dataset):
    """Some samples of another data set, in the order of `indices`."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.name = dataset.name
        self.labels = None if dataset.labels is None else [dataset.labels[index] for index in indices]
        self._dataset, self._indices = dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self._dataset[self._indices[index]]

    def rest(self) -> Subset:
        """The samples of the other data set that aren't among these."""
        taken = set(self._indices)
        return Subset(self._dataset, [index for index in range(len(self._dataset)) if index not in taken])
