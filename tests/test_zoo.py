"""Every model of the zoo, from both exporters: its structure is what the table says, and every recipe goes through."""

import functools
import itertools
import math
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxquant.passes.classify_blocks import classify
from typer.testing import CliRunner

from onnxquant import rewrite
from onnxquant.cli import app
from onnxquant.defaults import DEFAULT_RECIPE
from onnxquant.errors import OnnxquantError
from onnxquant.export import export
from onnxquant.graph.model import load
from onnxquant.pipeline import canonicalise
from onnxquant.preprocessing import Preprocessing
from onnxquant.recipes import recipe_names
from onnxquant.zoo import ZooModel, load_zoo
from tests.fixtures import FIXTURES, anonymise, load_fixture

ZOO = load_zoo()
QUICK = {  # the smallest of every family, where it is small; the others take too long for every run
    "mobilevit_xxs",
    "mobilevitv2_050",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "mobile_former_26m",
    "deit_t",
    "levit_128s",
    "edgenext_xx_small",
    "fastvit_t8",
    "fastvit_sa12",
    "tiny_vit_5m",
    "coat_tiny",
    "mobileone_s0",
    "repvit_m0_9",
}
WITHOUT_DATA = {"efficientquant", "weights-only"}
"""Recipes that quantize no activation by its range; the others take data, and time."""
SEARCHED = [f"search_scales.{option}" for option in ("candidates=10", "rounds=1", "places=64", "images=1")]
LEARNED = ["iterations=2", "reconstruct_modules.images=1"]
BRIEF = {"q-hyvit": SEARCHED, "adfq-vit": LEARNED, "hybrid-4bit": [*SEARCHED, *LEARNED]}
FEW = {"mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1", "efficientformerv2_s0", "deit_t"}
ONLY_FOR = {
    "q-hyvit": FEW | {"mobile_former_26m", "edgenext_xx_small", "coat_tiny"},
    "adfq-vit": {"deit_t", "swin_t"},
    "hybrid-4bit": {"mobilevit_xxs"},
    "fq-vit": {"deit_t"},
}
"""Recipes that take long, or are there to be compared with, and the models that they are tried on."""
TARGETS = {"torchscript": "onnxruntime", "dynamo": "tensorrt"}
"""By exporter."""
GRAPHS = [
    pytest.param(name, exporter, marks=[] if name in QUICK else [pytest.mark.slow]) for name, exporter in FIXTURES
]


@functools.lru_cache(maxsize=1)
def fixture(name, exporter):
    """One at a time: the large ones take hundreds of MB."""
    return load_fixture(name, exporter)


def classified(proto):
    model = load(proto)
    canonicalise(model)
    return model, classify(model.graph, model)


def module(node, model):
    """The module of a layer: its weight keeps the name where the exporter didn't fold another layer into it."""
    weight = node.inputs[1].name
    return weight.removesuffix(".weight") if weight.endswith(".weight") else model.scope(node)


def for_each_recipe_and_target():
    """Few models with all recipes; the other small ones with the recipe by default, for a target an exporter; large
    ones with that too, from one exporter, for the target whose files both runtimes must take.
    """
    for graph, recipe in itertools.product(GRAPHS, recipe_names()):
        name, exporter = graph.values
        marks, targets = graph.marks, (TARGETS[exporter],) if name in QUICK else ("portable",)
        if recipe in ("easyquant", "minmax", "ptq4vit", "q-hyvit-full", "repq-vit"):
            continue  # the passes are those of others
        if recipe in ONLY_FOR:
            if name not in ONLY_FOR[recipe] or (exporter != "dynamo" and recipe != "adfq-vit"):
                continue
            marks, targets = [pytest.mark.slow], ("tensorrt",)
        elif recipe == DEFAULT_RECIPE:
            if name not in QUICK and exporter != "dynamo":
                continue
            targets = tuple(TARGETS.values()) if name in FEW else targets
        elif name not in FEW:
            if recipe != "w8a8" or name not in QUICK:
                continue
            marks = [pytest.mark.slow]
        for target in targets:
            yield pytest.param(name, exporter, target, recipe, marks=marks)


def parse_with_tensorrt(model):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheels for this platform")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model), [str(parser.get_error(i)) for i in range(parser.num_errors)]


def places(model, blocks):
    position = {id(node): index for index, node in enumerate(model.graph.nodes)}
    return [(block.kind, block.variant, [position[id(node)] for node in block.nodes]) for block in blocks.blocks]


@pytest.mark.parametrize(("name", "exporter"), GRAPHS)
def test_attention_and_bridges_are_those_of_the_table_with_names_and_without(name, exporter):
    expected = ZOO[name]
    model, blocks = classified(fixture(name, exporter))
    assert [block.variant for block in blocks.of_kind("attention")] == [expected.variant] * expected.attention
    for block in blocks.of_kind("attention"):
        assert block.softmax in block.nodes
    bridges = [
        tuple(module(node, model) for node in block.nodes if node.op in ("Conv", "MatMul", "Gemm"))
        for block in blocks.of_kind("bridge")
    ]
    assert bridges == (list(expected.bridges) if expected.bridges_found else [])
    assert places(*classified(anonymise(fixture(name, exporter)))) == places(model, blocks)


@pytest.mark.parametrize(("name", "exporter", "target", "recipe"), list(for_each_recipe_and_target()))
def test_every_recipe_gives_a_model_that_its_target_takes(name, exporter, target, recipe):
    image = np.random.default_rng(0).standard_normal((1, 3, *ZOO[name].preprocessing.input_size), np.float32)
    data = None if recipe in WITHOUT_DATA else image
    brief = BRIEF.get(recipe, ())
    result = rewrite(
        fixture(name, exporter), recipe=recipe, calibration=data, target=target, overrides=brief, min_sqnr=-math.inf
    )
    assert result.report.blocks.get("attention", 0) == ZOO[name].attention
    rewritten = result.model.SerializeToString()
    session = ort.InferenceSession(rewritten, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": image})
    assert logits.shape == (1, 1000)
    assert np.isfinite(logits).all()
    if target != "onnxruntime":
        parse_with_tensorrt(rewritten)


def test_every_model_has_a_fixture_from_each_exporter():
    assert set(FIXTURES) == {(name, exporter) for name in ZOO for exporter in ("torchscript", "dynamo")}


def test_the_list_shows_every_model_and_needs_no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = CliRunner().invoke(app, ["export", "--list"])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", *ZOO]


def test_names_are_those_of_one_model():
    names = [name for model in ZOO.values() for name in (model.timm, *model.papers) if name]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("change", [{"attention": 0}, {"variant": None}, {"attention": -1}, {"bridge": []}])
def test_a_row_that_contradicts_itself_is_refused(change):
    row = ZOO["mobilevit_xxs"].model_dump()
    with pytest.raises(ValueError, match=r"variant|greater than|Extra inputs"):
        ZooModel.model_validate(row | change)


def test_a_model_that_timm_has_not_takes_the_users_own_file_and_records_its_preprocessing(tmp_path):
    own, output = tmp_path / "own.onnx", tmp_path / "out.onnx"
    onnx.save(load_fixture("mobile_former_26m", "torchscript"), own)
    export("mobile_former_26m", output, checkpoint=own)
    written = onnx.load(output)
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert Preprocessing.from_metadata(metadata, "out") == ZOO["mobile_former_26m"].preprocessing
    assert list(written.graph.node) == list(onnx.load(own).graph.node)


def test_a_model_that_timm_has_not_without_a_file_or_with_another_models_is_answered_with_a_way_on(tmp_path):
    with pytest.raises(OnnxquantError, match=r"mobile_former_26m is not in timm: .* with --checkpoint"):
        export("mobile_former_26m", tmp_path / "out.onnx", seed=0)
    own = tmp_path / "own.onnx"
    onnx.save(load_fixture("mobilevit_xxs", "torchscript"), own)
    with pytest.raises(OnnxquantError, match=r"own.onnx: mobile_former_26m takes images of 224x224"):
        export("mobile_former_26m", tmp_path / "out.onnx", checkpoint=own)
    with pytest.raises(OnnxquantError, match=r"is the --checkpoint itself"):
        export("mobile_former_26m", own, checkpoint=own)
    assert not (tmp_path / "out.onnx").exists()
