"""The plan: which tensor gets which quantizer, with which parameters, and why.

Passes that decide fill it, `insert_quantizers` turns it into nodes. As JSON it can be saved, read, edited by hand and
applied again without calibration data.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from onnxquant.errors import OnnxquantError, first_invalid
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.per_token import PerTokenQuantizer
from onnxquant.quantizers.power_of_two import PowerOfTwoFactorQuantizer
from onnxquant.quantizers.shift_log import ShiftLogQuantizer
from onnxquant.quantizers.twin_uniform import TwinUniformQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer

Quantizer = Annotated[
    UniformQuantizer
    | Log2Quantizer
    | TwinUniformQuantizer
    | ShiftLogQuantizer
    | PerTokenQuantizer
    | PowerOfTwoFactorQuantizer,
    Field(discriminator="kind"),
]


class Rounding(BaseModel):
    """How weights are rounded to codes.

    Attributes:
        mode: "nearest", "sum_preserving" (see `onnxquant.quantizers.rounding`), or "learned": up or down as learned for
            each weight (AdaRound).
        channel_mean: mean of each input channel (channels,), which the kept sum is weighted by; None for the plain sum.
        up: learned only: a bit a weight, in their order, 1 where it rounds up; packed, deflated, in base64.
    """

    model_config = ConfigDict(extra="forbid")

    mode: Literal["nearest", "sum_preserving", "learned"]
    channel_mean: list[float] | None = None
    up: Base64Bytes | None = None

    @classmethod
    def learned(cls, up: NDArray[np.bool_]) -> Rounding:
        """That rounds up where `up`, in the weight's shape, says so."""
        return cls(mode="learned", up=base64.b64encode(zlib.compress(np.packbits(up).tobytes())))

    def rounds_up(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Where a weight of this shape rounds up.

        Raises:
            ValueError: `up` is not of that many weights.
        """
        try:
            bits = np.unpackbits(np.frombuffer(zlib.decompress(self.up or b""), np.uint8))
        except zlib.error:
            bits = np.zeros(0, np.uint8)
        size = math.prod(shape)
        if not 0 <= bits.size - size < 8:
            raise ValueError(f"rounds {bits.size} weights up or down, not {size}")
        return bits[:size].reshape(shape).astype(bool)


class PlanEntry(BaseModel):
    """The quantizer of one tensor.

    Attributes:
        tensor: its name in the canonicalised graph.
        role: "weight" for an initializer, which is stored as codes; "activation" for a value computed at run time.
        quantizer: type and parameters.
        rounding: weights only.
        consumers: activations only: names of the nodes that read the quantized value; None for all of them.
        shift: uniform activations only: taken off the value before it is quantized, and made up for in the bias of
            every consumer; these are named then.
        stored: weights only: type of the codes in the file, where it isn't an 8-bit one; as a help to the reader.
        node: the node it was decided for, as a help to the reader.
        why: the reason, as a help to the reader.
    """

    model_config = ConfigDict(extra="forbid")

    tensor: str
    role: Literal["weight", "activation"]
    quantizer: Quantizer
    rounding: Rounding | None = None
    consumers: list[str] | None = None
    shift: FiniteFloat | None = None
    stored: Literal["int4"] | None = None
    node: str = ""
    why: str = ""


class QuantizationPlan(BaseModel):
    """All decisions for one model.

    Attributes:
        version: of this format.
        recipe: name of the recipe that made the plan.
        target: name of the runtime it is for.
        edits: passes that changed the float graph before its tensors were decided on, each with its name and options;
            they run again where the plan is applied.
        channel_scales: what the channels of an activation are divided by, and the weights that read them multiplied by,
            before any quantizer goes in: by tensor, in the order they are applied (`equalize_channels`).
        channel_shifts: what is taken off the divided channels, and made up for in the biases of all that reads them: by
            tensor, of those with channel_scales (`reparameterize_norms`).
        entries: in the order they were decided; at most one a tensor.
        exempt: tensors that a budget left in float, with the reason, as a help to the reader (`fit_budget`).
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    recipe: str = ""
    target: str = "onnxruntime"
    edits: list[dict[str, Any]] = []
    channel_scales: dict[str, list[float]] = {}
    channel_shifts: dict[str, list[float]] = {}
    entries: list[PlanEntry] = []
    exempt: dict[str, str] = {}

    @field_validator("entries")
    @classmethod
    def _one_each(cls, entries: list[PlanEntry]) -> list[PlanEntry]:
        names = [entry.tensor for entry in entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"tensor {twice} has two entries")
        return entries

    @field_validator("channel_shifts")
    @classmethod
    def _with_scales(cls, shifts: dict[str, list[float]], info: ValidationInfo) -> dict[str, list[float]]:
        if alone := next((name for name in shifts if name not in info.data.get("channel_scales", shifts)), None):
            raise ValueError(f"tensor {alone} has no channel_scales")
        return shifts

    def add(self, entry: PlanEntry) -> None:
        """Decide on a tensor; a later decision replaces an earlier one."""
        self.entries = [kept for kept in self.entries if kept.tensor != entry.tensor] + [entry]

    def to_json(self) -> str:
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> QuantizationPlan:
        """Read a saved plan.

        Raises:
            OnnxquantError: the file is missing or isn't a plan; the message names the entry that is wrong.
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except OSError as error:
            raise OnnxquantError(f"--plan {path}: can't be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise OnnxquantError(f"--plan {path}: not a plan; make one with --plan-out") from None
        except ValidationError as error:
            raise OnnxquantError(f"--plan {path}: {first_invalid(error)}; make one with --plan-out") from None
