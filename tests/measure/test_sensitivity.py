"""Quantizers are inserted one at a time, and ranked by what each costs at the output."""

import math

import numpy as np
import onnx
import pytest

from onnxquant import rewrite
from onnxquant.calibration.dataset import input_specs, open_dataset, split_held
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.measure.metrics import Agreement, sqnr_db
from onnxquant.measure.sensitivity import _cost, _groups, sensitivity
from onnxquant.measure.trials import noise, noise_share
from onnxquant.pipeline import decide
from onnxquant.pipeline import rewrite as rewrite_with_plan
from tests.graphs import attention, images, parse, run

CALIB = images(24)
FEW_BITS = ("quantize_conv_weights.bits=4", "quantize_softmax_log2.bits=4")


@pytest.fixture(scope="module")
def result():
    return sensitivity(attention(), CALIB, overrides=FEW_BITS)


def test_every_tensor_of_the_plan_is_ranked_worst_first(result):
    plan = rewrite(attention(), calibration=CALIB, overrides=FEW_BITS).plan
    assert sorted(cost.tensors for cost in result.costs) == sorted((entry.tensor,) for entry in plan.entries)
    assert {(cost.kind, cost.quantizer) for cost in result.costs} == {
        ("conv", "weight, uniform 4 bit (emulated: stored in 8)"),
        ("attention", "activation, log2 4 bit (emulated: stored in 8)"),
    }
    ranks = [cost.sqnr_db for cost in result.costs]
    assert ranks == sorted(ranks)
    assert len(result.costs) == 3


def test_each_figure_is_that_of_a_rewrite_with_this_entry_alone(result):
    proto = attention()
    plan = rewrite(proto, calibration=CALIB, overrides=FEW_BITS).plan
    _, held = split_held(open_dataset(CALIB, input_specs(proto), None), 32)
    x = np.concatenate([sample.feeds["image"] for sample in held])
    assert result.samples == len(x) == 6
    assert result.held_back
    (expected,) = run(proto, image=x)
    for cost in [*result.costs, result.together]:
        chosen = plan.model_copy(update={"entries": [e for e in plan.entries if e.tensor in cost.tensors]})
        (got,) = run(rewrite_with_plan(proto, plan=chosen).model, image=x)
        assert cost.sqnr_db == pytest.approx(sqnr_db(expected, got), abs=0.01)
        assert cost.top1_agreement == np.mean(expected.argmax(1) == got.argmax(1))


def test_everything_together_is_what_rewrite_reports(result):
    report = rewrite(attention(), calibration=CALIB, overrides=FEW_BITS).report
    assert result.together.sqnr_db == pytest.approx(report.sqnr_db, abs=0.01)
    assert sorted(result.together.tensors) == sorted(tensor for cost in result.costs for tensor in cost.tensors)
    assert result.together.share == 1


def test_shares_are_noise_energies_relative_to_all_quantized(result):
    for cost in result.costs:
        assert cost.share == pytest.approx(10 ** ((result.together.sqnr_db - cost.sqnr_db) / 10))


def test_blocks_are_quantized_whole():
    proto = parse(
        """g (float[N, 3, 8, 8] image) => (float[N, 4, 8, 8] y) {
            a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w1)
            act = Relu (a)
            y = Conv <kernel_shape = [1, 1]> (act, w2)
        }""",
        w1=np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32),
        w2=np.random.default_rng(1).standard_normal((4, 4, 1, 1)).astype(np.float32),
    )
    for node, name in zip(proto.graph.node, ("/m/m.0/Conv", "/m/m.0/Relu", "/m/m.1/Conv"), strict=True):
        node.name = name
    tensors = sensitivity(proto, CALIB, by="tensor")
    blocks = sensitivity(proto, CALIB, by="block")
    assert {cost.scope for cost in tensors.costs} == {"m.0", "m.1"}
    assert {cost.tensors for cost in tensors.costs} == {("w1",), ("w2",)}
    assert sorted(t for cost in blocks.costs for t in cost.tensors) == ["w1", "w2"]
    assert blocks.together.sqnr_db == tensors.together.sqnr_db


def test_entries_of_one_block_are_one_group_and_entries_without_a_block_stand_alone(monkeypatch):
    loaded = load(attention())
    context = decide(loaded, open_dataset(CALIB, input_specs(loaded.graph), None))
    one = context.blocks.blocks[0]
    monkeypatch.setattr(type(context.blocks), "of", lambda self, node: one)
    (group,) = _groups(context, "block")
    assert [entry.role for entry in group] == ["weight", "weight", "activation"]
    cost = _cost(group, context, {"y": Agreement()}, {"y": Agreement()})
    assert cost.quantizer == "2 x weight, uniform 8 bit; 1 x activation, log2 8 bit"
    assert len(_groups(context, "tensor")) == 3
    context.blocks = None
    assert len(_groups(context, "block")) == 3


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_makes_no_difference(result, batch_size):
    other = sensitivity(attention(), CALIB, overrides=FEW_BITS, batch_size=batch_size)
    assert [cost.tensors for cost in other.costs] == [cost.tensors for cost in result.costs]
    for a, b in zip(other.costs, result.costs, strict=True):
        assert a.sqnr_db == pytest.approx(b.sqnr_db, abs=0.05)


def test_a_single_sample_serves_for_both_and_is_said_to():
    single = sensitivity(attention(), CALIB[:1])
    assert (single.samples, single.held_back) == (1, False)


def test_samples_bound_what_is_compared_on():
    assert sensitivity(attention(), CALIB, samples=3).samples == 3


def test_a_recipe_of_weights_only_ranks_weights_only():
    assert {cost.kind for cost in sensitivity(attention(), CALIB, recipe="weights-only").costs} == {"conv"}


def test_progress_tells_of_every_model_that_is_measured():
    seen = []
    sensitivity(attention(), CALIB[:4], progress=lambda *step: seen.append(step))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_file_and_the_proto_are_left_as_they_were(tmp_path):
    proto = attention()
    before = proto.SerializeToString()
    onnx.save(proto, tmp_path / "a.onnx")
    sensitivity(proto, CALIB[:4])
    sensitivity(tmp_path / "a.onnx", CALIB[:4])
    assert proto.SerializeToString() == before
    assert (tmp_path / "a.onnx").read_bytes() == before


def test_what_costs_nothing_has_no_share_and_broken_outputs_have_it_all():
    assert noise_share(0.0, 0.0) == 0
    assert noise_share(0.0, 0.5) == 0
    assert noise_share(1.0, math.inf) == 0
    assert noise_share(math.inf, math.inf) == 1
    exact, broken = Agreement(), Agreement()
    exact.update(np.ones(2), np.ones(2))
    broken.update(np.ones(2), np.array([1, np.nan]))
    assert noise({"y": exact}) == 0
    assert noise({"y": exact, "z": broken}) == math.inf


def test_nothing_to_quantize_is_an_error():
    proto = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    with pytest.raises(OnnxquantError, match="g: nothing to quantize"):
        sensitivity(proto, np.ones((8, 4), np.float32))


def test_data_and_samples_are_needed():
    with pytest.raises(OnnxquantError, match="needs data to run on; give some with --calib"):
        sensitivity(attention(), None)
    with pytest.raises(OnnxquantError, match="samples must be at least 1"):
        sensitivity(attention(), CALIB, samples=0)
