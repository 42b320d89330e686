"""What each runtime accepts, as data: one TOML file a target."""

from __future__ import annotations

import sys
from importlib import resources

from pydantic import BaseModel, ConfigDict

from onnxquant.errors import OnnxquantError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        OnnxquantError: there is none.
    """
    if name not in target_names():
        raise OnnxquantError(f"--target {name}: unknown; choose one of {', '.join(target_names())}")
    return Target.model_validate(tomllib.loads((resources.files(__name__) / f"{name}.toml").read_text("utf-8")))
