"""Recipes for few bits on a transformer block: all passes of the papers together, and each with a part in it."""

import numpy as np
import pytest

from onnxquant import rewrite
from onnxquant.measure.metrics import sqnr_db
from onnxquant.search.simulate import simulate_plan
from tests.graphs import run
from tests.passes.test_split_outliers import block

BRIEF = {
    "adfq-vit": ["iterations=100", "images=16"],
    "hybrid-4bit": ["iterations=100", "images=8", "candidates=20", "rounds=1", "places=256"],
    "repq-vit": ["bits=4"],
    "minmax": ["bits=4"],
}


def tokens(count, seed):
    return np.random.default_rng(seed).standard_normal((count, 16, 8)).astype(np.float32)


def rewritten(recipe, *options, target="reference"):
    return rewrite(
        block(),
        recipe=recipe,
        calibration=tokens(128, 1),
        target=target,
        overrides=[*BRIEF[recipe], *options],
        samples=64,
        min_sqnr=-np.inf,
    )


def delivered(recipe):
    data = tokens(64, 2)
    return sqnr_db(run(block(), x=data)[0], run(rewritten(recipe).model, x=data)[0])


def test_learning_beats_fixed_rounding_at_4_bits():
    assert delivered("adfq-vit") > delivered("repq-vit") + 1
    assert delivered("repq-vit") > delivered("minmax")


@pytest.mark.parametrize(
    ("recipe", "target"), [("adfq-vit", "reference"), ("adfq-vit", "tensorrt"), ("hybrid-4bit", "tensorrt")]
)
def test_the_runtime_computes_what_was_learned(recipe, target):
    result, data = rewritten(recipe, target=target), tokens(64, 3)
    kinds = {entry.quantizer.kind for entry in result.plan.entries}
    assert kinds == {"uniform", "per-token", "shift-log"}
    expected = simulate_plan(block(), result.plan).run({"x": data})["y"].detach().numpy()
    assert sqnr_db(expected, run(result.model, x=data)[0]) > 100


def test_a_hybrid_learns_every_rounding():
    result = rewritten("hybrid-4bit")
    weights = [entry for entry in result.plan.entries if entry.role == "weight"]
    learned = [entry for entry in weights if entry.rounding is not None and entry.rounding.mode == "learned"]
    assert len(learned) >= len(weights) - 1  # one that learning made no better stays as it was
    assert {entry.quantizer.bits for entry in weights} == {4}


@pytest.mark.slow
def test_an_interrupted_rewrite_searches_nothing_again(tmp_path, monkeypatch):
    """Two passes take long: the state holds both, and goes when the rewrite is done."""
    from onnxquant.reconstruction.reconstruct import Reconstruction
    from onnxquant.search.search import Search

    state = tmp_path / "state.json"
    whole = rewritten("hybrid-4bit").plan.to_json()

    def interrupted(self):
        raise KeyboardInterrupt

    def searched(self):
        raise AssertionError("searches again")

    with monkeypatch.context() as patch:
        patch.setattr(Reconstruction, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rewritten("hybrid-4bit", f"resume='{state}'")
    assert state.exists()
    monkeypatch.setattr(Search, "_observe", searched)
    assert rewritten("hybrid-4bit", f"resume='{state}'").plan.to_json() == whole
    assert not state.exists()
