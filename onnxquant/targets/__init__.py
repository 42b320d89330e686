"""What each runtime accepts, as data: one TOML file a target."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from onnxquant.errors import OnnxquantError
from onnxquant.files import packaged_names, packaged_toml


class RefusedOperators(BaseModel):
    """Operators that a runtime refuses, always or under conditions that must all hold.

    Attributes:
        operators: standard operators.
        dtype: type of the first input.
        rank: number of the first input's dimensions.
        below: the compute capability from which on they are accepted.
        remedy: what to do instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operators: tuple[str, ...]
    dtype: str | None = None
    rank: int | None = None
    below: str | None = None
    remedy: str


class Placement(BaseModel):
    """Where a runtime wants quantized activations, and the form of float graph that its kernels are quickest on.

    Attributes:
        inputs_of: operators whose activations are quantized.
        outputs_of: operators that have an integer kernel only if what they write is quantized too.
        products: whether MatMuls of two activations are quantized.
        skips: whether a residual Add that follows a convolution reads codes, where a layer reads those of its skip.
        least_intensity: multiplications for each value read and written that a convolution has to do for its integer
            kernel to make up for quantizing and dequantizing around it.
        least_weights: the same for linear layers: weights they have at least.
        gemm: whether linear layers are to be Gemm.
        layout: whether chains of Reshape and Transpose are to be merged.
        gelu: whether GELU is to be one node, which takes opset 20.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs_of: tuple[str, ...]
    outputs_of: tuple[str, ...] = ()
    products: bool = False
    skips: bool = False
    least_intensity: float = 0
    least_weights: int = 0
    gemm: bool = False
    layout: bool = False
    gelu: bool = False


class Target(BaseModel):
    """A runtime's description. Types have ONNX's names, as in ``float``, ``float16`` and ``int8``.

    Attributes:
        name: as given to ``--target``.
        description: one line for ``onnxquant targets``.
        codes: types that QuantizeLinear and DequantizeLinear may store.
        zero_point: whether a zero-point other than 0 is accepted.
        int4_weights: whether weights of 4 bits and fewer are int4 where their layer's activations stay in float.
        functions: whether functions are accepted; they are inlined where not.
        onnxruntime: whether ONNX Runtime is to run the model.
        opsets: the oldest and the newest one accepted.
        dtypes: types that tensors may have.
        boundary_dtypes: types that only inputs, outputs and constants of the graph may have.
        rules: what `onnxquant.targets.check` looks for, by name.
        custom_operators: operators that need no function body, as ``domain.name`` or ``name``; * stands for any text.
        compute_capabilities: those an engine can be built for; empty if there is no list.
        minimum_compute_capability: by type.
        refused: operators that aren't accepted.
        placement: where quantized activations go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    placement: Placement
    codes: tuple[str, ...]
    zero_point: bool
    int4_weights: bool = False
    functions: bool = True
    onnxruntime: bool = False
    opsets: tuple[int, int] | None = None
    dtypes: tuple[str, ...] = ()
    boundary_dtypes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    custom_operators: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    minimum_compute_capability: dict[str, str] = {}
    refused: tuple[RefusedOperators, ...] = ()

    @property
    def unsigned(self) -> bool:
        """Whether weights may be uint8."""
        return "uint8" in self.codes

    def is_symmetric(self, scheme: str, asking: str) -> bool:
        """Whether a quantizer's ranges are symmetric.

        Args:
            scheme: "symmetric" or "asymmetric"; "auto" for what the runtime takes.
            asking: name of the pass, for the message.

        Raises:
            OnnxquantError: they are to be asymmetric, which the runtime refuses.
        """
        takes_both = self.unsigned and self.zero_point
        if scheme == "asymmetric" and not takes_both:
            raise OnnxquantError(
                f"{asking}: scheme=asymmetric needs uint8 and zero-points, which target {self.name} refuses; use "
                "scheme=symmetric or auto"
            )
        return scheme == "symmetric" or (scheme == "auto" and not takes_both)

    def parse_compute_capability(self, text: str) -> tuple[int, int]:
        """A GPU's compute capability, as ``8.6``, for which this runtime builds engines.

        Raises:
            OnnxquantError: it isn't one.
        """
        if not re.fullmatch(r"\d{1,2}\.\d", text):
            raise OnnxquantError(f"--compute-capability {text}: must be MAJOR.MINOR, for example 8.6")
        if self.compute_capabilities and text not in self.compute_capabilities:
            raise OnnxquantError(
                f"--compute-capability {text}: {self.name} builds engines only for "
                f"{', '.join(self.compute_capabilities)}; choose one of them or another target"
            )
        return as_version(text)


def as_version(capability: str) -> tuple[int, int]:
    """``8.6`` as (8, 6), which compares as it should."""
    major, minor = capability.split(".")
    return int(major), int(minor)


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
    return Target.model_validate(_read(name))


def _read(name: str) -> dict[str, Any]:
    """A target's file on top of the one it extends: tables add to that one's, other entries replace them."""
    table = packaged_toml(__name__, name)
    if base := table.pop("extends", None):
        inherited = _read(base)
        for key, value in table.items():
            if isinstance(value, dict):
                table[key] = {**inherited.get(key, {}), **value}
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                table[key] = [*inherited.get(key, []), *value]
        table = {**inherited, **table}
    return table
