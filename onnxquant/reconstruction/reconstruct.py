"""Learn, module after module, how weights round and activations scale (ADFQ-ViT, section 3.4; AdaRound; BRECQ).

Each module is to compute with its quantizers, from what the quantized network before it gives, what the float one
computes (Eqs. 27 to 32, Eq. 32 over the attention's probabilities):

    L = |O - Ô|² / |O - Ô|²₀ + KL(P, P̂) / KL(P, P̂)₀ + λ mean(1 - |2 h(V) - 1|^β)

The first two are in units of what they are to begin with, and the last is a mean, where the paper has sums: so the size
of a module, of its output and of its tokens doesn't matter to λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.pass_manager import PassContext
from onnxquant.plan import Rounding
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.reconstruction.learning import Learning
from onnxquant.reconstruction.modules import Module
from onnxquant.reconstruction.soft import LearnedScale, SoftRounding, Transform, transform_of
from onnxquant.reconstruction.store import Samples, Stored, chunks, read, store
from onnxquant.search.checkpoint import CheckpointFile
from onnxquant.search.simulate import simulate

Transforms: TypeAlias = Mapping[str, Callable[[Tensor], Tensor]]
"""What stands for the quantizers of activations, by what their consumers read."""

WARM_UP = 0.2
"""Share of the iterations before roundings are drawn to a side."""

BETAS = (20.0, 2.0)
"""β at first and in the end, as in the authors' code; the paper begins with 10."""

FASTEST = 50.0
"""By how much learning in few iterations is quicker, at most."""

TINY = 1e-12
"""Stands for no error at all."""


@dataclass(frozen=True)
class Errors:
    """Of a module: at its outputs, relative to their power, and of attention's probabilities, in nats a row."""

    output: float
    probabilities: float

    @property
    def total(self) -> float:
        return self.output + self.probabilities


@dataclass(frozen=True)
class Learned:
    """What came of a module.

    Attributes:
        name: of the module.
        before: its error.
        soft: after learning, with roundings as they were learned.
        after: with each up or down.
    """

    name: str
    before: Errors
    soft: Errors
    after: Errors

    @property
    def better(self) -> bool:
        return self.after.total < self.before.total


class Reconstruction:
    """All modules of a graph in turn, each behind those already learned.

    Attributes:
        state: the plan's entries by tensor.

    Args:
        options: of the pass.
        modules: in the order of the graph.
        context: with the plan and the data.

    Raises:
        OnnxquantError: as `simulate`.
    """

    def __init__(self, options: Learning, modules: Sequence[Module], context: PassContext) -> None:
        self.options, self.context, self._modules = options, context, modules
        self.state = {entry.tensor: entry for entry in context.plan.entries}
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = context.calibration
        assert data is not None
        self._data, self._samples = data, len(data)
        fixed = [spec.shape[0] for spec in input_specs(context.model.graph) if spec.shape]
        sizes = [size for size in fixed if isinstance(size, int)]
        wanted = min(options.images, self._samples)
        self._batch = sizes[0] if sizes else wanted
        self._minibatch = max(1, wanted // self._batch) * self._batch

    def run(self) -> list[str]:
        """Learn all modules; gives notes."""
        file = CheckpointFile(self.options, self.context)
        known = file.read()
        self.state.update({entry.tensor: entry for entry in known.entries})
        self._simulation = simulate(self.context.model, self.state.values(), self._device)
        self._weights, self._transforms = dict(self._simulation.weights), dict(self._simulation.transforms)
        found: list[Learned] = []
        with TemporaryDirectory(prefix="onnxquant-") as folder:
            self._folder = Path(folder)
            self._inputs = self._store_inputs()
            self._float: dict[str, Stored] = {}
            self._quantized: dict[str, Stored] = {}
            self._probabilities: tuple[str, ...] = ()
            for position in range(known.done, len(self._modules)):
                found.append(self._learn(self._modules[position], position))
                file.write(position + 1, self.state.values(), at_once=True)
        return list(_notes(found, known.done))

    def _store_inputs(self) -> dict[str, Stored]:
        specs = input_specs(self.context.model.graph)
        runs = (
            (np.array([number]), {name: torch.from_numpy(array[:1]) for name, array in batch.feeds.items()})
            for number, batch in enumerate(batches(self._data, 1, specs))
        )
        return store(self._folder, self._samples, [spec.name for spec in specs], runs)

    def _learn(self, module: Module, position: int) -> Learned:
        outer = [name for name in module.inputs if name not in self._inputs]
        for name in self._probabilities:
            self._float.pop(name).remove()
        known = self._float, self._quantized
        wanted = list(dict.fromkeys([*outer, *module.outputs, *module.probabilities]))
        self._float = self._compute(self._float, wanted, {}, {})
        self._quantized = self._compute(self._quantized, outer, self._weights, self._transforms)
        for stored in (each for kept in known for each in kept.values()):
            stored.remove()
        self._probabilities, self._shapes = module.probabilities, self._shapes_of(module)
        before = self._errors(module, self._weights, self._transforms)
        if before.total < TINY:
            self._finish(module)
            return Learned(module.name, before, before, before)
        rounding = {name: self._rounding(name) for name in module.weights}
        read_as = self._simulation.read
        scales = {
            read_as[name]: transform_of(self.state[name], self._device, learn=self.options.learns_scales)
            for name in module.activations
        }
        self._descend(module, position, rounding, scales, before)
        soft = {name: each.weight().detach() for name, each in rounding.items()}
        hard = {name: each.hardened() for name, each in rounding.items()}
        softly = self._errors(module, {**self._weights, **soft}, {**self._transforms, **scales})
        after = self._errors(module, {**self._weights, **hard}, {**self._transforms, **scales})
        learned = Learned(module.name, before, softly, after)
        if learned.better:
            self._weights.update(hard)
            self._transforms.update(scales)
            self._keep(learned, rounding, scales.values())
        self._finish(module)
        return learned

    def _keep(self, found: Learned, rounding: Mapping[str, SoftRounding], scales: Iterable[Transform]) -> None:
        why = f"; learned with {found.name}, whose output error went from {_change(found.before, found.after)}"
        for name, each in rounding.items():
            entry, learned = self.state[name], Rounding.learned(each.up().cpu().numpy())
            self.state[name] = entry.model_copy(update={"rounding": learned, "why": entry.why + why})
        for scale in scales:
            entry = scale.learned()
            self.state[entry.tensor] = entry

    def _finish(self, module: Module) -> None:
        """Let what follows start from this module's outputs."""
        names = list(module.outputs)
        for name in names:
            if name in self._quantized:
                self._quantized.pop(name).remove()
        self._quantized |= self._compute(self._quantized, names, self._weights, self._transforms)

    def _compute(
        self,
        known: Mapping[str, Stored],
        names: Sequence[str],
        weights: Mapping[str, Tensor],
        transforms: Transforms,
    ) -> dict[str, Stored]:
        """Tensors of all samples, from those that are known already."""

        def runs() -> Iterator[tuple[Samples, Mapping[str, Tensor]]]:
            with torch.no_grad():
                for chosen in chunks(self._samples, self._batch):
                    feeds = {**read(self._inputs, chosen), **read(known, chosen), **weights}
                    yield chosen, self._simulation.graph.run(feeds, names, transforms)

        return store(self._folder, self._samples, names, runs()) if names else {}

    def _shapes_of(self, module: Module) -> dict[str, Tensor]:
        """Sizes that the module reads, which are the same for all batches."""
        if not module.shapes:
            return {}
        chosen = next(chunks(self._samples, self._batch))
        with torch.no_grad():
            return self._simulation.graph.run(read(self._inputs, chosen), list(module.shapes))

    def _rounding(self, name: str) -> SoftRounding:
        quantizer = self.state[name].quantizer
        assert isinstance(quantizer, UniformQuantizer)
        return SoftRounding(self._simulation.graph.constants[name], quantizer)

    def _descend(
        self,
        module: Module,
        position: int,
        rounding: Mapping[str, SoftRounding],
        scales: Transforms,
        before: Errors,
    ) -> None:
        options, total = self.options, self.options.iterations
        random = np.random.default_rng([options.seed, position])
        speed = min(max(1.0, 3000 / total), FASTEST)
        factors = [scale.factor for scale in scales.values() if isinstance(scale, LearnedScale)]
        groups = [{"params": [each.logits for each in rounding.values()], "lr": options.rate * speed}]
        if factors:
            groups.append({"params": factors, "lr": options.scale_rate * speed})
        optimizer = torch.optim.Adam(groups)
        done, weights_learned = position * total, sum(each.logits.numel() for each in rounding.values())
        for iteration in range(total):
            if factors:
                optimizer.param_groups[-1]["lr"] = (
                    options.scale_rate * speed * (1 + math.cos(math.pi * iteration / total)) / 2
                )
            optimizer.zero_grad()
            chosen = random.choice(self._samples, self._minibatch, replace=self._samples < self._minibatch)
            for part in np.split(chosen, len(chosen) // self._batch):
                weights = {name: each.weight() for name, each in rounding.items()}
                inputs = self._mixed(module, part, random)
                errors = self._error(module, inputs, part, weights, scales)
                share = len(part) / len(chosen)
                loss = errors[0] / max(before.output, TINY) * share
                if before.probabilities > TINY:
                    loss = loss + errors[1] / before.probabilities * share
                if not loss.isfinite():
                    raise OnnxquantError(f"{module.name}: the loss is not a number; lower the rate")
                loss.backward()
            if iteration >= WARM_UP * total:
                along = (iteration / total - WARM_UP) / (1 - WARM_UP)
                beta = BETAS[1] + (BETAS[0] - BETAS[1]) * (1 - along)
                undecided = torch.stack([each.undecided(beta) for each in rounding.values()]).sum() / weights_learned
                (options.rounding_weight * undecided).backward()
            optimizer.step()
            self.context.progress(done + iteration + 1, total * len(self._modules))

    def _mixed(self, module: Module, chosen: Samples, random: np.random.Generator) -> dict[str, Tensor]:
        """What the module reads: some of it as the float network has it."""
        feeds = {name: self._inputs[name].read(chosen) for name in module.inputs if name in self._inputs}
        for name, stored in self._quantized.items():
            if name in module.inputs:
                quantized, exact = stored.read(chosen), self._float[name].read(chosen)
                draws = torch.from_numpy(random.random(tuple(quantized.shape), np.float32))
                feeds[name] = torch.where(draws < self.options.mixing, exact, quantized)
        return feeds

    def _errors(self, module: Module, weights: Mapping[str, Tensor], transforms: Transforms) -> Errors:
        """Over all samples."""
        inputs = {name: stored for name, stored in {**self._inputs, **self._quantized}.items() if name in module.inputs}
        found = []
        with torch.no_grad():
            for chosen in chunks(self._samples, self._batch):
                feeds = read(inputs, chosen)
                own = {name: weights[name] for name in module.weights}
                found.append([float(each) for each in self._error(module, feeds, chosen, own, transforms)])
        return Errors(*np.mean(found, axis=0).tolist())

    def _error(
        self,
        module: Module,
        feeds: Mapping[str, Tensor],
        chosen: Samples,
        weights: Mapping[str, Tensor],
        transforms: Transforms,
    ) -> tuple[Tensor, Tensor]:
        names = [*module.outputs, *module.probabilities]
        found = self._simulation.graph.run({**self._shapes, **feeds, **weights}, names, transforms)
        expected = {name: self._float[name].read(chosen).to(self._device) for name in names}
        outputs = [
            (found[name] - expected[name]).square().sum() / expected[name].square().sum().clamp_min(TINY)
            for name in module.outputs
        ]
        divergences = [_divergence(expected[name], found[name]) for name in module.probabilities]
        zero = torch.zeros((), device=self._device)
        return sum(outputs, zero), sum(divergences, zero)


def _notes(found: Sequence[Learned], earlier: int) -> Iterator[str]:
    """In a few lines; the entries of the plan say it for each module."""
    if earlier:
        yield f"{earlier} modules were learned before"
    changed = [each for each in found if each.before.total >= TINY]
    if changed:
        means = [
            math.exp(np.mean([math.log(max(getattr(each, when).output, TINY)) for each in changed]))
            for when in ("before", "after", "soft")
        ]
        yield (
            f"{len(changed)} modules: output error {means[0]:.2e} -> {means[1]:.2e} in the mean "
            f"({means[2]:.2e} before hard rounding)"
        )
    if kept := [each.name for each in changed if not each.better]:
        yield f"kept as they were, since learning made them no better: {', '.join(kept)}"


def _change(before: Errors, after: Errors) -> str:
    return f"{before.output:.2e} to {after.output:.2e}"


def _divergence(exact: Tensor, found: Tensor) -> Tensor:
    """KL(P, P̂), a mean over the rows where the last axis is the distribution's, else in proportion to that."""
    exact, found = exact.clamp_min(TINY), found.clamp_min(TINY)
    return (exact * (exact.log() - found.log())).sum(-1).mean()
