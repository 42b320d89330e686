"""What each runtime accepts, as data: one TOML file a target."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from onnxquant.errors import OnnxquantError
from onnxquant.files import packaged_names, packaged_toml


class Target(BaseModel):
    """A runtime's description.

    Attributes:
        name: as given to ``--target``.
        description: one line for ``onnxquant targets``.
        unsigned: whether weights may be uint8.
        zero_point: whether a zero-point other than 0 is accepted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    unsigned: bool
    zero_point: bool


def target_names() -> list[str]:
    """All targets there are."""
    return packaged_names(__name__)


def load_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        OnnxquantError: there is none.
    """
    if name not in target_names():
        raise OnnxquantError(f"--target {name}: unknown; choose one of {', '.join(target_names())}")
    return Target.model_validate(packaged_toml(__name__, name))
