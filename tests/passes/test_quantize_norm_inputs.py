"""quantize_norm_inputs: what LayerNormalization reads gets a scale and a power-of-two factor a channel."""

import numpy as np
import pytest
from onnxquant.passes.calibrate import Calibrate
from onnxquant.passes.classify_blocks import ClassifyBlocks
from onnxquant.passes.quantize_activations import QuantizeActivations
from onnxquant.passes.quantize_linear_weights import QuantizeLinearWeights
from onnxquant.passes.quantize_norm_inputs import QuantizeNormInputs

from onnxquant import rewrite
from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.pass_manager import PassContext, PassManager
from onnxquant.targets import load_target
from tests.graphs import attention, images, parse

NORMED = """
    model (float[N, 3, 4] x) => (float[N, 3, 4] y) {
        a = Relu (x)
        normed = LayerNormalization <axis = -1> (a, gamma)
        b = MatMul (normed, w)
        y = Add (a, b)
    }
"""

SHARED = """
    model (float[N, 3, 4] x) => (float[N, 3, 4] y) {
        a = Relu (x)
        normed = LayerNormalization <axis = -1> (a, gamma)
        b = MatMul (a, w)
        y = Add (normed, b)
    }
"""

REACH = np.array([1, 2, 4, 8], np.float32)


def normed(text=NORMED):
    rng = np.random.default_rng(0)
    return parse(text, gamma=np.ones(4, np.float32), w=rng.standard_normal((4, 4)).astype(np.float32))


def tokens(count=32):
    """Channels of unequal range, the ends of which occur."""
    x = np.random.default_rng(1).uniform(-1, 1, (count, 3, 4)).astype(np.float32)
    x[0, 0] = 1
    return x * REACH


def decided(proto, target="reference", data=None, before=(), **options):
    model = load(proto)
    dataset = None if data is None else open_dataset(data, input_specs(model.graph), None)
    context = PassContext(model, load_target(target), calibration=dataset)
    steps = [ClassifyBlocks(), Calibrate(), *before, QuantizeNormInputs(**options)]
    notes = PassManager(steps).run(context)[-1].result.notes
    return context.plan.entries, notes


def test_only_the_norm_reads_the_codes():
    entries, notes = decided(normed(), data=tokens())
    assert [(entry.tensor, entry.node, entry.consumers) for entry in entries] == [
        ("a", "LayerNormalization_1", ["LayerNormalization_1"])
    ]
    assert notes == ("1 inputs of norms to 8 bits, 4 factors",)


@pytest.mark.parametrize(("target", "signed"), [("reference", False), ("tensorrt", True)])
def test_channels_get_factors_by_their_ranges_and_codes_that_the_target_takes(target, signed):
    [entry], _ = decided(normed(), target, tokens())
    assert entry.quantizer.exponents == (0, 1, 2, 3)
    assert entry.quantizer.signed == signed
    assert entry.quantizer.zero_point == 0, "nothing is below 0"


def test_what_norms_alone_read_is_decided_anew_and_what_a_layer_reads_is_left():
    full = [QuantizeLinearWeights(), QuantizeActivations(full=True)]
    kinds = {
        text: {entry.tensor: entry.quantizer.kind for entry in decided(normed(text), data=tokens(), before=full)[0]}
        for text in (NORMED, SHARED)
    }
    assert kinds[NORMED]["a"] == "power-of-two-factor"
    assert kinds[SHARED]["a"] == "uniform"


def test_without_norms_it_says_so():
    entries, notes = decided(attention(), data=np.zeros((1, 3, 8, 8), np.float32))
    assert entries == []
    assert "no LayerNormalization reads" in notes[0]


def test_it_needs_data():
    with pytest.raises(OnnxquantError, match=r"quantize_norm_inputs: .*--calib"):
        decided(normed())


@pytest.mark.parametrize("target", ["reference", "tensorrt"])
def test_fq_vit_serves_channels_of_unequal_range_better_than_one_scale_does(target):
    found = {}
    for factors in (1, 4):
        overrides = ["quantize_norm_inputs.bits=6", f"quantize_norm_inputs.factors={factors}"]
        result = rewrite(
            normed(), recipe="fq-vit", calibration=tokens(), target=target, overrides=overrides, min_sqnr=-np.inf
        )
        assert {entry.quantizer.kind for entry in result.plan.entries} == {"uniform", "power-of-two-factor"}
        found[factors] = result.report.sqnr_db
    assert found[4] > found[1] + 3


def test_fq_vit_gives_attention_four_bits():
    result = rewrite(
        attention(), recipe="fq-vit", calibration=images(16), target="reference", min_sqnr=-np.inf, samples=8
    )
    probabilities = next(entry for entry in result.plan.entries if entry.tensor == "probs")
    assert probabilities.quantizer.bits == 4
    assert probabilities.quantizer.kind != "uniform"
