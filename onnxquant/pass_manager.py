"""Passes and the manager that runs them.

A pass is a small pydantic model: its fields are its options, `run` does the work. Deciding is apart from rewriting: a
pass that analyses or decides writes to the context (blocks, statistics, plan) and leaves the graph alone; a pass that
rewrites edits the graph. The manager holds a recipe to the order its passes need, times each one, and can verify or
dump the graph after each one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict

from onnxquant.blocks import Blocks
from onnxquant.calibration.dataset import Dataset
from onnxquant.calibration.observers import AnyObserver, Observer
from onnxquant.calibration.ranges import Ranges
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import Model
from onnxquant.plan import QuantizationPlan
from onnxquant.targets import Target, load_target

Observation: TypeAlias = tuple[str, type[Observer]]
"""A tensor's name and what is to be observed of it."""


@dataclass
class PassContext:
    """What passes share beside the graph.

    Attributes:
        model: the model whose graph is worked on, for scopes and messages.
        target: the runtime the result is for.
        plan: filled by the passes that decide, read by the one that inserts.
        blocks: from `classify_blocks`.
        calibration: samples to calibrate on; None where the user gave none.
        ranges: what was observed earlier, to be used instead of observing; None where there is nothing.
        batch_size: samples run at once, where the model's batch axis allows it.
        dequantized: by quantized tensor, the names of what its codes are turned back into; from `insert_quantizers`.
        observations: what `calibrate` saw, by tensor name and type of observer.
        held: samples held back to judge the result on, as many as calibrate at most; None where there is no data.
        unseen: all samples that don't calibrate, those among them.
        earlier: the passes that have run.
        upcoming: the passes still to come, so that one run over the data can serve them all.
        progress: called with (samples done, samples in all) while data is streamed.
    """

    model: Model
    target: Target = field(default_factory=lambda: load_target("onnxruntime"))
    plan: QuantizationPlan = field(default_factory=QuantizationPlan)
    blocks: Blocks | None = None
    calibration: Dataset | None = None
    ranges: Ranges | None = None
    batch_size: int = 32
    dequantized: dict[str, list[str]] = field(default_factory=dict)
    observations: dict[Observation, Observer] = field(default_factory=dict)
    held: Dataset | None = None
    unseen: Dataset | None = None
    earlier: Sequence[Pass] = ()
    upcoming: Sequence[Pass] = ()
    progress: Callable[[int, int], None] = lambda done, total: None

    def observed(self, tensor: str, observer: type[AnyObserver]) -> AnyObserver | None:
        """What `observer` saw of `tensor`; None where there was no data to observe."""
        seen = self.observations.get((tensor, observer))
        return seen if isinstance(seen, observer) else None


@dataclass(frozen=True)
class PassResult:
    """What a pass did: whether it changed the graph, and notes for the user (one that found nothing to do says so)."""

    modified: bool
    notes: tuple[str, ...] = ()


class Pass(BaseModel):
    """One step of a recipe. Subclasses declare options as fields and what they need and give as class variables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()
    voids: ClassVar[frozenset[str]] = frozenset()
    """What passes before it provided and no longer holds after it."""
    edits: ClassVar[bool] = False
    """Whether the pass changes the float graph: a plan keeps such passes, since its tensors are those they leave."""
    exact: ClassVar[bool] = True
    """Whether the graph computes the same after the pass, but for float rounding (--verify-each holds it to that)."""

    @classmethod
    def pass_name(cls) -> str:
        """The name recipes use, that of the file: QuantizeConvWeights -> quantize_conv_weights."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def observes(self, graph: gs.Graph, context: PassContext) -> Iterable[Observation]:
        """The tensors this pass wants observed; `calibrate` does it for all upcoming passes in one run."""
        return ()

    def run(self, graph: gs.Graph, context: PassContext) -> PassResult:
        raise NotImplementedError

    def measured(self, tensor: str, observer: type[AnyObserver], context: PassContext) -> AnyObserver:
        """What `observer` saw of `tensor`.

        Raises:
            OnnxquantError: there was no data to observe.
        """
        seen = context.observed(tensor, observer)
        if seen is None:
            raise OnnxquantError(
                f"{self.pass_name()}: the ranges of activations must be measured; give data with --calib"
            )
        return seen

    def __call__(self, graph: gs.Graph, calibration: Any = None, target: str = "onnxruntime") -> gs.Graph:
        """Use the pass alone, as one stage of a graphsurgeon pipeline.

        The analyses it requires run first and what it decides is inserted at once.

        Args:
            graph: edited in place.
            calibration: what `onnxquant.rewrite` takes; needed only by passes that calibrate.
            target: name of the runtime the result is for.

        Returns:
            `graph`.
        """
        from onnxquant.pipeline import run_stage

        return run_stage(self, graph, calibration, target)


AfterEach: TypeAlias = Callable[[int, Pass, gs.Graph], None]
"""What a manager calls after each pass, with the pass's position, the pass and the graph."""


@dataclass(frozen=True)
class PassRun:
    """One line of the report: which pass ran, for how many seconds, and what it said."""

    name: str
    seconds: float
    result: PassResult


class PassManager:
    """Runs passes in order over one graph.

    Args:
        passes: in the order they run.
        provided: what is there before the first pass.
        after_each: each called with (position, pass, graph) after each pass; --verify-each and --dump-dir are two.

    Raises:
        OnnxquantError: a pass requires what no earlier one provides.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        provided: frozenset[str] = frozenset(),
        after_each: Sequence[AfterEach] = (),
    ) -> None:
        self.passes = list(passes)
        self.after_each = after_each
        available = set(provided)
        for step in self.passes:
            if missing := step.requires - available:
                needs, add = (
                    " and ".join(names) for names in (sorted(missing), map(PROVIDERS.__getitem__, sorted(missing)))
                )
                raise OnnxquantError(
                    f"recipe: {step.pass_name()} needs {needs}, which no pass before it provides; add {add} before it"
                )
            available = (available - step.voids) | step.provides

    def run(self, context: PassContext) -> list[PassRun]:
        """Run every pass on ``context.model.graph``."""
        graph, runs = context.model.graph, []
        for position, step in enumerate(self.passes):
            context.earlier, context.upcoming = self.passes[:position], self.passes[position + 1 :]
            start = time.perf_counter()
            result = step.run(graph, context)
            runs.append(PassRun(step.pass_name(), time.perf_counter() - start, result))
            for hook in self.after_each:
                hook(position, step, graph)
        return runs


PROVIDERS = {"blocks": "classify_blocks", "observations": "calibrate", "plan": "a pass that quantizes"}
"""The pass that provides what another requires, for messages and for stages that run alone."""
