"""The report says what the rewrite did, and nothing that comes from a file is more than text on it."""

import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
import typer
from onnx import numpy_helper
from typer.testing import CliRunner

from onnxquant import rewrite
from onnxquant.calibration.observers import Log2Histogram
from onnxquant.cli.report import report_command
from onnxquant.cli.rewrite import rewrite_command
from onnxquant.errors import OnnxquantError
from onnxquant.measure.compare import compare
from onnxquant.plan import QuantizationPlan
from onnxquant.quantizers.log2 import Log2Quantizer
from onnxquant.quantizers.uniform import UniformQuantizer
from onnxquant.report import render, render_report
from onnxquant.report.figures import HEIGHT, WIDTH, Log2Figure, ProfileFigure, RangeFigure, WeightFigure
from onnxquant.report.page_data import gather
from tests.graphs import attention, images
from tests.report import pages

APP = typer.Typer()
APP.command("rewrite")(rewrite_command)
APP.command("report")(report_command)


class Html(HTMLParser):
    """Elements with their attributes, and the text inside them but for scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.tables, self._cell = {}, None
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag in ("script", "style"):
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(attributes.get("id"), [])
        if tag == "tr":
            self._rows.append([])
        if tag == "td":
            self._rows[-1].append("")
            self._cell = self._rows[-1]

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._open.pop()
        if tag == "td":
            self._cell = None

    def handle_data(self, data):
        if not self._open:
            self.texts.append(data)
            if self._cell is not None:
                self._cell[-1] += data


@pytest.fixture(scope="module")
def hybrid():
    return pages.hybrid()


@pytest.fixture(scope="module")
def page(hybrid):
    original, result, data = hybrid
    return gather(original, result, data, name="model.onnx")


@pytest.fixture(scope="module")
def html(page):
    return Html(render(page))


def rows(html, table):
    return [row for row in html.tables[table] if row]


def test_every_entry_of_the_plan_is_a_row_with_its_tensor_node_and_reason(html, hybrid):
    entries = hybrid[1].plan.entries
    assert len(rows(html, "plan-table")) == len(entries) == 3
    for row, entry in zip(rows(html, "plan-table"), entries, strict=True):
        assert entry.tensor in row[1]
        assert entry.node in row[1]
        assert entry.quantizer.kind in row[2]
        assert row[-1] == entry.why


def test_the_numbers_are_those_of_the_rewrite(html, page, hybrid):
    report = hybrid[1].report
    assert page.counts == report.blocks
    assert {chip.label: count for chip, count in page.quantized.items()} == report.quantized
    (agreement,) = report.judgement.agreement.values()
    for expected in (
        f"SQNR {agreement.sqnr_db:.1f} dB, cosine {agreement.cosine:.5f}, top-1 agreement "
        f"{agreement.top1_agreement:.1%} on {report.judgement.samples} held-back samples",
        f"{report.bytes_before:,} → {report.bytes_after:,} bytes",
        f"{report.seconds:.1f} s for the rewrite",
        *(f"{count} × {label}" for label, count in report.quantized.items()),
        *(f"{count} {kind}" for kind, count in report.blocks.items()),
    ):
        assert expected in html.text, expected
    assert [(row[0], row[1]) for row in rows(html, None)[-len(report.runs) :]] == [
        (run.name, f"{run.seconds * 1000:.0f}") for run in report.runs
    ]


def test_every_node_is_in_its_block(page, html):
    nodes = [node for block in page.blocks for node in block.nodes]
    assert len(nodes) == 19
    assert Counter(node.op for node in nodes)["Conv"] == 2
    listed = {row[0] for row in rows(html, None)}
    assert {node.name for node in nodes} <= listed
    assert [block.number for block in page.blocks] == list(range(1, len(page.blocks) + 1))
    (probabilities,) = (chip for block in page.blocks if block.kind == "attention" for chip in block.chips)
    assert probabilities.short == "A8"


def test_layers_are_those_of_compare_worst_first(html, page, hybrid):
    original, result, data = hybrid
    layers = compare(original, result.model, data).layers
    assert [row.layer.tensor for row in page.layers] == [layer.tensor for layer in layers]
    shown = rows(html, "layer-table")
    assert [row[2] for row in shown] == [layer.tensor for layer in layers]
    assert [row[0] for row in shown] == ["∞" if np.isinf(layer.sqnr_db) else f"{layer.sqnr_db:.1f}" for layer in layers]
    values = [row.layer.sqnr_db for row in page.layers]
    assert values == sorted(values)


def test_a_weights_sqnr_is_that_of_the_codes_in_the_file(page, hybrid):
    original, result, _ = hybrid
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in original.graph.initializer}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    for card in page.weights:
        name, weight = card.row.entry.tensor, floats[card.row.entry.tensor].astype(np.float64)
        shape = (-1, *[1] * (weight.ndim - 1))
        codes, zero = stored[f"{name}_quantized"].astype(int), stored[f"{name}_zero_point"].astype(int)
        error = (codes - zero.reshape(shape)) * stored[f"{name}_scale"].reshape(shape) - weight
        assert card.row.sqnr_db == pytest.approx(10 * np.log10((weight**2).sum() / (error**2).sum()), abs=1e-3)
    assert [card.row.sqnr_db for card in page.weights] == sorted(card.row.sqnr_db for card in page.weights)


def test_a_weight_that_becomes_float16_behind_its_codes_has_its_sqnr_too():
    result = rewrite(attention(), calibration=images(), float_type="fp16", target="tensorrt")
    assert "Cast" in {node.op_type for node in result.model.graph.node}
    weights = [row for row in gather(attention(), result).plan if row.entry.role == "weight"]
    assert weights
    assert all(row.sqnr_db > 30 for row in weights)


def test_the_probabilities_of_every_attention_are_counted_once(page):
    (card,) = page.attention
    assert card.figure.values == page.samples * 16 * 16
    assert card.figure.comb.levels == 256
    assert 0 <= card.figure.comb.start < card.figure.comb.end <= WIDTH * 1.001


def test_bridge_layers_show_the_ranges_of_weights_and_outputs_by_channel():
    original, result, data = pages.demo()
    page = gather(original, result, data)
    assert len(page.bridges) == 6
    for card in page.bridges:
        assert card.node.op == "Conv"
        assert card.activations.channels == card.weights.channels
        assert card.weights.path.count("M") == card.weights.channels
        assert card.activations.low < 0 < card.activations.high


@pytest.fixture(scope="module")
def hostile_html():
    original, result, data = pages.hostile()
    return render_report(original, result, data, name=pages.HOSTILE)


def test_hostile_names_stay_text(hostile_html):
    page = Html(hostile_html)
    tags = {tag for tag, _ in page.elements}
    assert "img" not in tags
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "<img src=x onerror=alert(1)>{{7*7}}" in page.text
    assert "stem_weight</script><img" in page.text
    assert "{{49}}" not in hostile_html
    assert "\u202e" not in hostile_html
    assert "\\u202e" in hostile_html


def test_the_page_asks_for_nothing_and_allows_its_own_script_only(html):
    links = [value for _, attributes in html.elements for name, value in attributes.items() if name in ("href", "src")]
    assert all(link.startswith("#") or link == "data:," for link in links)
    (policy,) = (element["content"] for tag, element in html.elements if "http-equiv" in element)
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    ids = [attributes["id"] for _, attributes in html.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_without_data_the_page_says_so_and_shows_what_the_files_hold():
    model = attention()
    result = rewrite(model)
    page = Html(render_report(model, result))
    assert "not measured: no data" in page.text
    assert "no samples: only the quantizer is shown" in page.text
    assert len(rows(page, "plan-table")) == 3
    assert "layer-table" not in page.tables


def test_a_recipe_that_leaves_attention_in_float_shows_it_without_levels():
    model, data = attention(), images(8)
    result = rewrite(model, recipe="weights-only", calibration=data)
    dataset = pages.open_dataset(data, pages.input_specs(model), None)
    (card,) = gather(model, result, dataset).attention
    assert card.row is None
    assert card.figure.comb is None
    assert card.figure.histogram


def test_the_recipes_rules_decide_what_blocks_are_and_a_lost_recipe_is_noted(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[[pass]]\nname = "classify_blocks"\n[[pass]]\nname = "quantize_conv_weights"\n'
        '[[rule]]\nkind = "bridge"\nop_type = "Conv"\n'
    )
    result = rewrite(attention(), recipe=str(recipe))
    assert gather(attention(), result).counts == result.report.blocks
    assert result.report.blocks["bridge"] > 0
    recipe.unlink()
    page = gather(attention(), result)
    assert "can't be read any more" in page.notes[0]
    assert page.notes[0] in Html(render(page)).text


def test_the_plan_of_another_model_is_an_error_that_names_a_tensor(hybrid):
    plan = hybrid[1].plan.model_copy(deep=True)
    plan.entries[0].tensor = "elsewhere"
    result = type(hybrid[1])(hybrid[1].model, plan, hybrid[1].report)
    with pytest.raises(OnnxquantError, match=r"tensor elsewhere is not in model\.onnx; is the plan for another model"):
        gather(hybrid[0], result, name="model.onnx")


# Observers


@pytest.mark.parametrize("batches", [1, 3])
def test_a_log2_histogram_counts_every_value_once_however_it_is_batched(batches):
    rng = np.random.default_rng(0)
    values = np.concatenate([2.0 ** -rng.uniform(0, 23, 999), [0, 0, 1e-12, 1, 1.001]]).astype(np.float32)
    observer = Log2Histogram()
    for part in np.array_split(values, batches):
        observer.update(part.reshape(1, -1))
    inside = values[values >= 2.0**-24].clip(max=1)
    expected, _ = np.histogram(np.log2(inside), 96, (-24, 0))
    assert observer.counts.tolist() == expected.tolist()
    assert observer.below == 3
    assert observer.counts.sum() + observer.below == values.size


@pytest.mark.parametrize(("axis", "shape"), [(1, (4, 3, 5, 5)), (-1, (4, 7, 3))])
def coordinates(path):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_weights_levels_cover_its_range(bits, axis):
    values = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    low, high = (values.min(), values.max()) if axis is None else (values.min(axis=1), values.max(axis=1))
    quantizer = UniformQuantizer.from_range(np.asarray(low), np.asarray(high), bits=bits, symmetric=False, axis=axis)
    figure = WeightFigure.of(values, quantizer)
    assert figure.comb.levels == 2**bits
    assert figure.comb.step >= 2.5
    assert figure.low <= values.min()
    assert figure.high >= values.max()
    assert 0 <= figure.comb.start < figure.zero < figure.comb.end <= WIDTH + 1e-6
    assert bool(figure.envelope) == (axis is not None)
    assert all(-0.05 <= number <= WIDTH + 0.05 for number in coordinates(figure.histogram + figure.envelope))


@pytest.mark.parametrize("values", [np.zeros((2, 4)), np.full((2, 4), -3.0), np.full((1, 1), 1e-30)])
def test_constant_weights_can_be_drawn(values):
    values = values.astype(np.float32)
    quantizer = UniformQuantizer.from_range(values.min(axis=1), values.max(axis=1), bits=8, symmetric=False, axis=0)
    figure = WeightFigure.of(values, quantizer)
    assert all(np.isfinite(coordinates(figure.histogram)))
    assert figure.comb.start <= figure.comb.end


def test_a_constant_probability_can_be_drawn():
    observer = Log2Histogram()
    observer.update(np.ones((1, 5), np.float32))
    figure = Log2Figure.of(4, observer, Log2Quantizer.from_range(1, 1, bits=8, epsilon=1e-5))
    assert figure.values == 5
    assert figure.comb.nth <= figure.comb.levels


def test_an_all_zero_channel_range_can_be_drawn():
    zeros = np.zeros(3, np.float32)
    figure = RangeFigure.of(zeros, zeros)
    assert figure.channels == 3
    assert all(np.isfinite(coordinates(figure.path)))


def test_the_profile_keeps_to_its_frame_whatever_the_values():
    values = [float("inf"), float("-inf"), 40.0, -3.0, 300.0]
    figure = ProfileFigure.of(("conv" if i % 2 else "mlp", value) for i, value in enumerate(values))
    points = [
        tuple(map(float, point.split())) for path in figure.dots.values() for point in re.findall(r"M([^h]+)", path)
    ]
    assert len(points) == len(values)
    assert all(0 <= x <= 1000 and 0 <= y <= 180 for x, y in points)
    assert all(0 <= top <= 100 for top in figure.grid.values())
    assert HEIGHT < 180


# Command line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(attention(), "model.onnx")
    np.savez("calib.npz", image=images(32))
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def test_rewrite_writes_the_report_beside_the_model(folder):
    done = invoke("rewrite", "model.onnx", "--calib", "calib.npz", "--report", "out.html", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    page = Html((folder / "out.html").read_text("utf-8"))
    assert f"SQNR {document['agreement']['probabilities']['sqnr_db']:.1f} dB" in page.text
    assert f"{document['samples']} held-back samples" in page.text
    assert sorted(path.name for path in folder.iterdir()) == ["calib.npz", "model.onnx", "model.q.onnx", "out.html"]


def test_a_report_can_be_made_later_from_the_files(folder):
    invoke("rewrite", "model.onnx", "--calib", "calib.npz", "--plan-out", "plan.json")
    done = invoke("report", "model.onnx", "model.q.onnx", "--plan", "plan.json", "--data", "calib.npz", "--limit", "6")
    assert done.exit_code == 0, done.output
    page = Html((folder / "model.q.html").read_text("utf-8"))
    assert len(rows(page, "plan-table")) == len(QuantizationPlan.from_json(folder / "plan.json").entries)
    assert "on 6 samples given" in page.text
    assert "Not recorded: the rewrite was made earlier." in page.text
    before, after = ((folder / name).stat().st_size for name in ("model.onnx", "model.q.onnx"))
    assert f"{before:,} → {after:,} bytes" in page.text


@pytest.mark.parametrize("verb", ["rewrite", "report"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere/out.html", "can't be written"),
        (".", "can't be written"),
        ("/proc/out.html", "can't be written"),
        ("model.onnx", "is the input itself"),
    ],
)
def test_a_path_that_cant_be_written_is_found_before_the_work_starts(folder, monkeypatch, verb, path, said):
    invoke("rewrite", "model.onnx", "-o", "model.q.onnx", "--plan-out", "plan.json")
    monkeypatch.setattr("onnxquant.pass_manager.PassManager.run", lambda *_: pytest.fail("the work has started"))
    before = {file: file.read_bytes() for file in folder.iterdir()}
    if verb == "rewrite":
        done = invoke("rewrite", "model.onnx", "-o", "other.onnx", "--report", path)
    else:
        done = invoke("report", "model.onnx", "model.q.onnx", "--plan", "plan.json", "-o", path)
    assert isinstance(done.exception, OnnxquantError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_without_jinja2_the_user_is_told_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = invoke("rewrite", "model.onnx", "--report", "out.html")
    assert str(done.exception) == "--report: needs jinja2: pip install 'onnxquant[report]'"
    assert not (folder / "model.q.onnx").exists()


def test_tensors_that_a_budget_left_in_float_are_named_with_the_reason():
    before = rewrite(attention(), calibration=images(32))
    result = rewrite(attention(), calibration=images(32), min_sqnr=before.report.sqnr_db + 3)
    html = Html(render_report(attention(), result, None, name="hybrid.onnx"))
    assert result.report.exempt
    for tensor, why in result.report.exempt.items():
        assert f"{tensor} : {why}" in html.text
