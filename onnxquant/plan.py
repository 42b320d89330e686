"""The plan: which tensor gets which quantizer, with which parameters, and why.

Passes that decide fill it, `insert_quantizers` turns it into nodes. As JSON it can be saved, read, edited by hand and
applied again without calibration data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from onnxquant.errors import OnnxquantError, first_invalid
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.twin_uniform import TwinUniformQuantizer
from onnxquant.quantizers.uniform import UniformQuantizer

Quantizer = Annotated[UniformQuantizer | Log2Quantizer | TwinUniformQuantizer, Field(discriminator="kind")]


class Rounding(BaseModel):
    """How weights are rounded to codes.

    Attributes:
        mode: "nearest", or "sum_preserving" (see `onnxquant.quantizers.rounding`).
        channel_mean: mean of each input channel (channels,), which the kept sum is weighted by; None for the plain sum.
    """

    model_config = ConfigDict(extra="forbid")

    mode: Literal["nearest", "sum_preserving"]
    channel_mean: list[float] | None = None


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
        entries: in the order they were decided; at most one a tensor.
        exempt: tensors that a budget left in float, with the reason, as a help to the reader (`fit_budget`).
    """

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    recipe: str = ""
    target: str = "onnxruntime"
    edits: list[dict[str, Any]] = []
    channel_scales: dict[str, list[float]] = {}
    entries: list[PlanEntry] = []
    exempt: dict[str, str] = {}

    @field_validator("entries")
    @classmethod
    def _one_each(cls, entries: list[PlanEntry]) -> list[PlanEntry]:
        names = [entry.tensor for entry in entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"tensor {twice} has two entries")
        return entries

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
