"""What the passes that learn have in common. Imports torch only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from onnxquant.errors import OnnxquantError
from onnxquant.pass_manager import Pass, PassContext, PassResult

if TYPE_CHECKING:
    from onnxquant.reconstruction.modules import Module


class Learning(Pass):
    """How long and how fast is learned; passes say which parts of the graph are learned as one.

    Attributes:
        iterations: for each module.
        images: of a minibatch.
        rate: Adam's, for roundings, with 3000 iterations; with fewer it is as much higher, up to 50 times.
        scale_rate: the same for scales of activations, as a part of them; annealed along a cosine.
        rounding_weight: λ, of the term that draws roundings to one side or the other.
        mixing: share of a module's inputs that are float, not those of the quantized network before it, drawn anew each
            time (QDrop, Wei et al., 2022).
        seed: of minibatches and mixing.
        resume: file to keep the state in, and to go on from if it is there; a rewrite removes it at its end.
    """

    iterations: Annotated[int, Field(ge=1)] = 3000
    images: Annotated[int, Field(ge=1)] = 32
    rate: Annotated[float, Field(gt=0)] = 3e-3
    scale_rate: Annotated[float, Field(ge=0)] = 4e-5
    rounding_weight: Annotated[float, Field(ge=0)] = 1000
    mixing: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: int = 0
    resume: Path | None = None

    requires: ClassVar[frozenset[str]] = frozenset({"blocks", "plan"})
    learns_scales: ClassVar[bool] = False
    """Whether scales of activations are learned with the roundings."""

    def modules(self, graph: gs.Graph, context: PassContext) -> list[Module]:
        """In the order of the graph."""
        raise NotImplementedError

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        """Go over the plan.

        Raises:
            OnnxquantError: no calibration data, no torch, or a node that torch can't compute; the message says which.
        """
        if context.calibration is None:
            raise OnnxquantError(f"{self.pass_name()}: learning needs data; give some with --calib")
        modules = self.modules(graph, context)
        if not modules:
            return PassResult(False, ("nothing to learn: no part of the graph has quantized weights left",))
        import onnxquant.search  # noqa: F401  # says what to install where torch isn't
        from onnxquant.reconstruction.reconstruct import Reconstruction

        reconstruction = Reconstruction(self, modules, context)
        notes = tuple(reconstruction.run())
        context.plan.entries = list(reconstruction.state.values())
        return PassResult(False, notes)
