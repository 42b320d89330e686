"""Choose scale, granularity and scheme of every quantizer by what the loss makes of them (Q-HyViT, Algorithm 1).

A layer's error is weighted with the gradient of the loss at its output (Eq. 6):

    Σ (Ô - O)² (∂L/∂O)²

Candidates are n scales x {a layer, a channel} x {symmetric, asymmetric} for weights, and scales x schemes for
activations, in turn, the others quantized as they are by then, for some rounds. What is quantized at all was decided
before: this pass goes over the plan.

A bridge (section 3.2) is judged by what its last layer computes, with all of its layers composed: the output of the
first alone says little about tensors that are about to change their meaning.

Three things differ from the paper as printed. The loss is taken against classes drawn from the model's own output
(against that output itself its gradient is zero everywhere). Ranges include zero, so that no zero-point is clipped. And
of each layer a sample of places is looked at, with a fifth of the candidates spread wide and a fifth close to the best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import onnx_graphsurgeon as gs
from pydantic import Field

from onnxquant.errors import OnnxquantError
from onnxquant.pass_manager import Pass, PassContext, PassResult


class SearchScales(Pass):
    """Choose the scale, granularity and scheme of every uniform quantizer of the plan by a Hessian-weighted search.

    Attributes:
        metric: what the error at a layer's output is (`onnxquant.search.objective`).
        candidates: n, scales tried for each choice of granularity and scheme.
        smallest: of the scales, as a part of the one that clips nothing.
        largest: the same.
        granularity: what a scale of a weight may serve; activations have one each: no runtime has integer kernels for
            more.
        schemes: asymmetric quantizers have a zero-point, or where the target has none, and the layers that read the
            activation a bias, a shift (`absorb_shift`); elsewhere they are left out.
        bridges: judge a bridge as a whole.
        rounds: over all layers; each chooses weights, then activations.
        places: of each layer, looked at over all samples.
        images: that bridges are judged on.
        draws: of the classes that the loss is taken against, for every sample.
        seed: of the places and of the classes drawn.
        resume: file to keep the state in, and to go on from if it is there; a rewrite removes it at its end.
    """

    metric: Literal["hessian", "mse", "cosine"] = "hessian"
    candidates: Annotated[int, Field(ge=10)] = 100
    smallest: Annotated[float, Field(gt=0, lt=1)] = 0.01
    largest: Annotated[float, Field(ge=1)] = 1.2
    granularity: tuple[Literal["layer", "channel"], ...] = ("layer", "channel")
    schemes: tuple[Literal["symmetric", "asymmetric"], ...] = ("symmetric", "asymmetric")
    bridges: bool = True
    rounds: Annotated[int, Field(ge=1)] = 3
    places: Annotated[int, Field(ge=1)] = 1024
    images: Annotated[int, Field(ge=1)] = 8
    draws: Annotated[int, Field(ge=1)] = 4
    seed: int = 0
    resume: Path | None = None

    requires: ClassVar[frozenset[str]] = frozenset({"blocks", "observations", "plan"})

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        """Go over the plan's uniform entries.

        Raises:
            OnnxquantError: no calibration data, no torch, or a node that torch can't compute; the message says which.
        """
        if context.calibration is None:
            raise OnnxquantError(f"{self.pass_name()}: the search needs data; give some with --calib")
        from onnxquant.search.search import Search

        search = Search(self, graph, context)
        notes = tuple(search.run())
        context.plan.entries = list(search.state.values())
        return PassResult(False, notes)
