"""A simulation computes what ONNX Runtime does with the rewritten file."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import load
from onnxquant.measure.metrics import sqnr_db
from onnxquant.pipeline import apply_edits, canonicalise, open_samples
from onnxquant.plan import PlanEntry
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.search.layers import layer_of
from onnxquant.search.objective import quantized_weights
from onnxquant.search.simulate import simulate, simulate_plan, transform
from tests.graphs import attention, images, parse, run

DEMO = Path(__file__).parents[2] / "models" / "demo"

QUANTIZING = ("quantize_conv_weights", "quantize_linear_weights", "quantize_activations")

TWICE = """
    model (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] a) {
        a = Relu (x)
        y = MatMul (a, w)
        z = Sigmoid (a)
    }
"""


def coarse(step, bits=8):
    return UniformQuantizer(bits, True, np.array(step), np.array(0))


def computed(simulation, feeds, outputs=None):
    with torch.no_grad():
        return {name: value.numpy() for name, value in simulation.run(feeds, outputs).items()}


def test_only_the_named_consumers_read_the_quantized_value():
    w, x = np.eye(4, dtype=np.float32), np.array([[0.2, 0.4, 0.6, 0.8]], np.float32)
    model = load(parse(TWICE, w=w))
    matmul = next(node.name for node in model.graph.nodes if node.op == "MatMul")

    def outputs(consumers):
        entry = PlanEntry(tensor="a", role="activation", quantizer=coarse(0.5), consumers=consumers)
        return computed(simulate(model, [entry]), {"x": x})

    named, every = outputs([matmul]), outputs(None)
    for found in (named, every):
        np.testing.assert_array_equal(found["y"], [[0, 0.5, 0.5, 1]])
        np.testing.assert_array_equal(found["a"], x, "an output of the graph keeps the float value")
    np.testing.assert_allclose(named["z"], 1 / (1 + np.exp(-x)), rtol=1e-6)
    np.testing.assert_allclose(every["z"], 1 / (1 + np.exp(-np.array([[0, 0.5, 0.5, 1]]))), rtol=1e-6)


def test_the_model_stays_as_it_was():
    proto = parse(TWICE, w=np.eye(4, dtype=np.float32))
    model = load(proto)
    before = model.to_proto().SerializeToString(deterministic=True)
    simulate(model, [PlanEntry(tensor="a", role="activation", quantizer=coarse(0.5))])
    assert model.to_proto().SerializeToString(deterministic=True) == before


def test_an_entry_of_another_model_is_named():
    model = load(parse(TWICE, w=np.eye(4, dtype=np.float32)))
    with pytest.raises(OnnxquantError, match="tensor b is not in model; is the plan for another model"):
        simulate(model, [PlanEntry(tensor="b", role="activation", quantizer=coarse(0.5))])


@given(
    values=arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=32)),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
)
def test_what_is_read_is_to_the_bit_what_the_quantizer_computes_in_numpy(values, bits, symmetric):
    quantizer = UniformQuantizer.from_range(values.min(), values.max(), bits=bits, symmetric=symmetric)
    read = transform(PlanEntry(tensor="a", role="activation", quantizer=quantizer))
    np.testing.assert_array_equal(read(torch.from_numpy(values)).numpy(), quantizer.fake_quantize(values))


def test_a_shift_is_taken_off_and_added_again():
    quantizer = UniformQuantizer.from_range(np.array(-1.0), np.array(1.0), bits=8, symmetric=True)
    entry = PlanEntry(tensor="a", role="activation", quantizer=quantizer, shift=5.0)
    values = torch.linspace(4, 6, 100)
    assert (transform(entry)(values) - values).abs().max() < 1 / 127
    assert (transform(entry.model_copy(update={"shift": None}))(values) - values).abs().max() > 3


@pytest.mark.parametrize("target", ["reference", "tensorrt"])
@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [
        ("efficientquant-int8", {"uniform", "log2"}),
        ("ptq4vit", {"uniform", "twin-uniform"}),
        ("q-hyvit-full", {"uniform"}),
        ("w8a8", {"uniform"}),
    ],
)
def test_the_runtime_computes_what_is_simulated(recipe, kinds, target):
    proto, x = attention(channels=64), images(8)
    searching = ("search_scales.candidates=10", "search_scales.rounds=1") if recipe[0] in "pq" else ()
    result = rewrite(
        proto, recipe=recipe, calibration=x, target=target, overrides=searching, samples=4, min_sqnr=-np.inf
    )
    assert {entry.quantizer.kind for entry in result.plan.entries} == kinds
    simulation = simulate_plan(proto, result.plan)
    found = computed(simulation, {"image": x})["probabilities"]
    assert sqnr_db(found, run(result.model, image=x)[0]) > 40


@pytest.mark.parametrize("rounding", ["nearest", "sum_preserving"])
def test_weights_are_those_that_the_search_tries(rounding):
    proto, x = attention(), images(8)
    overrides = [f"quantize_conv_weights.rounding={rounding}", "search_scales.candidates=10"]
    result = rewrite(proto, recipe="q-hyvit", calibration=x, target="reference", overrides=overrides, min_sqnr=-np.inf)
    model = load(proto)
    canonicalise(model)
    apply_edits(model, result.plan)
    entries, weights = result.plan.entries, simulate(model, result.plan.entries).weights
    layers = {
        node.inputs[1].name: layer_of(node) for node in model.graph.nodes if node.op in ("Conv", "Gemm", "MatMul")
    }
    compared = 0
    for entry in entries:
        if entry.role == "weight":
            layer = layers[entry.tensor]
            assert torch.equal(layer.as_weight(quantized_weights(layer, entry)), weights[entry.tensor])
            compared += 1
    assert compared == 7


@pytest.mark.slow
@pytest.mark.parametrize("target", ["reference", "tensorrt"])
@pytest.mark.parametrize("bits", [8, 6])
def test_a_trained_model_computes_what_the_search_did(bits, target):
    """From one quantizer to the next the two differ by float rounding only: from the same inputs, 100 dB and more.

    From end to end a value close to a tie becomes another code in one than in the other, and so do others behind it:
    with 6 bits the simulation itself has 43 dB between one batch size and another.
    """
    path, count = DEMO / "mobilevit_xxs_digits.onnx", 32
    overrides = [f"{name}.bits={bits}" for name in QUANTIZING] + [
        "search_scales.candidates=10",
        "search_scales.rounds=1",
    ]
    result = rewrite(
        path, recipe="q-hyvit", calibration=str(DEMO / "digits_train.npz"), target=target, overrides=overrides
    )
    data = open_samples(load(path), str(DEMO / "digits.npz"))
    x = np.concatenate([data[number].feeds["input"] for number in range(count)])
    simulation = simulate_plan(path, result.plan)
    simulated = computed(simulation, {"input": x})["logits"]
    assert sqnr_db(simulated, run(result.model, input=x)[0]) > (40 if bits == 8 else 35)

    quantized = [name for name in simulation.read if name != "input"]
    values = {"input": x} | intermediate(result.model, ["logits", *quantized], x)
    for name in ["logits", *quantized]:
        others = {other: value for other, value in values.items() if other not in (name, "logits")}
        assert sqnr_db(computed(simulation, others, [name])[name], values[name]) > 100, name


def intermediate(proto, names, x):
    """Values of a file's tensors, before they are quantized."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused layers don't write them
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(None, {"input": x}), strict=True))
