"""The zoo: the models onnxquant is tested on, and what it must find in each. The table is models/zoo.toml."""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onnxquant.files import packaged_toml
from onnxquant.preprocessing import Preprocessing


class ZooModel(BaseModel):
    """One model; the head of models/zoo.toml says what the fields mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    papers: tuple[str, ...] = ()
    timm: str | None = None
    preprocessing: Preprocessing
    attention: int = Field(ge=0)
    variant: Literal["dot", "factor", "linear"] | None = None
    bridges: tuple[tuple[str, ...], ...]
    bridges_found: bool = True

    @model_validator(mode="after")
    def _has_variant(self) -> ZooModel:
        if (self.attention > 0) != (self.variant is not None):
            raise ValueError("attention needs a variant, and a variant attention")
        return self


@functools.cache
def load_zoo() -> dict[str, ZooModel]:
    """Every model of the zoo by its name, in the table's order."""
    return {name: ZooModel.model_validate(table) for name, table in packaged_toml("onnxquant.models", "zoo").items()}
