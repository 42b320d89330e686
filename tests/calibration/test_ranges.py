"""Calibration as a file: made once, used instead of the data."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxquant import rewrite
from onnxquant.calibration.dataset import FeedDataset, split_held
from onnxquant.calibration.observers import ChannelMean, MinMax, Observer
from onnxquant.calibration.ranges import Ranges
from onnxquant.calibration.samples import InputSpec
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import check, load
from onnxquant.observation import calibrate
from onnxquant.pass_manager import PassContext, PassManager
from onnxquant.pipeline import CANONICAL_PASSES, FINAL_PASSES
from onnxquant.recipes import build_passes, load_recipe
from onnxquant.targets import load_target
from tests.graphs import attention, images, initializers, parse, run
from tests.scripts import PRELUDE, run_script

DEMO = Path(__file__).parents[2] / "models" / "demo"


def recall(model, ranges, recipe="efficientquant", target="onnxruntime", **context):
    """Rewrite from ranges; the model and what `calibrate` said."""
    source = load(model)
    manager = PassManager([*CANONICAL_PASSES, *build_passes(load_recipe(recipe), []), *FINAL_PASSES])
    runs = manager.run(PassContext(source, load_target(target), ranges=ranges, **context))
    notes = [note for run in runs for note in run.result.notes if run.name == "calibrate"]
    return check(source.to_proto(), source.name), notes


def kept(ranges, folder):
    """The ranges as a file, read again."""
    (folder / "ranges.json").write_text(ranges.to_json())
    return Ranges.from_json(folder / "ranges.json")


@pytest.fixture
def ranges():
    return calibrate(attention(), images(8))


def with_outputs(model):
    """A copy that outputs every tensor, and the tensors' names."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    names = [output for node in model.graph.node for output in node.output]
    del copied.graph.output[:]
    copied.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return copied, names


@pytest.mark.parametrize("recipe", ["efficientquant", "weights-only"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_rewrite_from_kept_ranges_is_the_one_from_the_data(tmp_path, recipe, target):
    from_data = rewrite(attention(), recipe=recipe, calibration=images(32), target=target).model
    ranges = kept(calibrate(attention(), images(32), recipe=recipe, target=target), tmp_path)
    model, notes = recall(attention(), ranges, recipe, target)
    assert model.SerializeToString() == from_data.SerializeToString()
    assert notes == [f"{3 if recipe == 'efficientquant' else 2} tensors as measured on 24 samples before"]


@pytest.mark.parametrize("exporter", ["", ".dynamo"])
def test_so_it_is_for_the_demo(tmp_path, exporter):
    model, data = DEMO / f"mobilevit_xxs_digits{exporter}.onnx", DEMO / "digits_train.npz"
    ranges = kept(calibrate(model, data), tmp_path)
    from_data = rewrite(model, calibration=data).model
    assert recall(model, ranges)[0].SerializeToString() == from_data.SerializeToString()


def test_ranges_go_before_data(ranges):
    class Unread(FeedDataset):
        def __getitem__(self, index):
            raise AssertionError("read")

    data = Unread("data", [{"image": images(1)}], [InputSpec("image", ("N", 3, 8, 8), np.dtype(np.float32))])
    assert recall(attention(), ranges, calibration=data)[1] == ["3 tensors as measured on 6 samples before"]


def test_the_range_of_every_float_tensor_that_the_file_names_is_that_of_the_data_run():
    model = parse(
        """
        g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) {
            conv = Conv (x, weight)
            norm = BatchNormalization (conv, gamma, beta, mean, variance)
            same = Identity (norm)
            size = Shape (same)
            half = Cast <to = 10> (same)
            y = Relu (same)
        }
        """,
        weight=np.ones((2, 2, 1, 1), np.float32),
        gamma=np.array([1, -2], np.float32),
        beta=np.zeros(2, np.float32),
        mean=np.ones(2, np.float32),
        variance=np.ones(2, np.float32),
    )
    data = np.random.default_rng(0).standard_normal((16, 2, 4, 4)).astype(np.float32)
    ranges = calibrate(model, data, recipe="weights-only", samples=8)
    specs = [InputSpec("x", ("N", 2, 4, 4), np.dtype(np.float32))]
    used, _ = split_held(FeedDataset("data", [{"x": data}], specs), 8)
    fed = np.concatenate([sample.feeds["x"] for sample in used])
    outputs, names = with_outputs(model)
    values = {"x": fed, **dict(zip(names, run(outputs, x=fed), strict=True))}
    assert list(ranges.tensors) == ["x", "conv", "norm", "same", "half", "y"]
    for name in ranges.tensors:
        observed = ranges.observed(name, MinMax)
        assert observed.minimum == pytest.approx(values[name].min(), rel=1e-3)
        assert observed.maximum == pytest.approx(values[name].max(), rel=1e-3)


def test_the_model_is_left_as_it_was(tmp_path):
    onnx.save(attention(), tmp_path / "a.onnx")
    before = (tmp_path / "a.onnx").read_bytes()
    calibrate(tmp_path / "a.onnx", images(8))
    assert (tmp_path / "a.onnx").read_bytes() == before


def test_the_same_data_gives_the_same_file(ranges):
    assert calibrate(attention(), images(8)).to_json() == ranges.to_json()


def test_a_file_has_a_line_a_tensor(ranges):
    lines = ranges.to_json().splitlines()
    assert sum(line.startswith('  "') for line in lines) == len(ranges.tensors) == 20
    assert all(name in json.loads(ranges.to_json())["tensors"] for name in ("image", "stem", "probs", "probabilities"))


@given(total=st.integers(1, 300), samples=st.integers(1, 120), classes=st.integers(0, 4))
def test_the_number_of_samples_that_were_used_says_which_were_held_back(total, samples, classes):
    class Numbers(FeedDataset):
        def __init__(self):
            self.name, self.labels = "data", [i % classes for i in range(total)] if classes else None

        def __len__(self):
            return total

        def __getitem__(self, index):
            return index

    used, held = split_held(Numbers(), samples)
    again, held_again = split_held(Numbers(), len(used))
    assert list(used) == list(again)
    assert list(held) == list(held_again)


def test_progress_counts_both_runs():
    calls = []
    calibrate(attention(), images(8), batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 12) for done in range(2, 13, 2)]


def test_overrides_change_what_is_observed():
    nearest = calibrate(attention(), images(8), overrides=["quantize_conv_weights.rounding=nearest"])
    assert nearest.observed("image", ChannelMean) is None
    assert calibrate(attention(), images(8)).observed("image", ChannelMean) is not None


def test_ranges_of_another_model_are_refused(ranges):
    other = parse(
        "other (float[N, 3, 8, 8] picture) => (float[N, 2, 8, 8] y) { y = Conv (picture, w) }",
        w=np.ones((2, 3, 1, 1), np.float32),
    )
    with pytest.raises(
        OnnxquantError, match=r"measured on another model \(hybrid\) than other, they lack tensor picture; run"
    ):
        recall(other, ranges)


def test_ranges_of_other_weights_are_refused(ranges):
    trained_on = attention()
    weight = next(tensor for tensor in trained_on.graph.initializer if tensor.name == "q_weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(1.01 * initializers(trained_on)["q_weight"], "q_weight"))
    with pytest.raises(OnnxquantError, match="its weights or nodes differ; run onnxquant calibrate on it"):
        recall(trained_on, ranges)


def test_what_the_ranges_lack_is_named_with_the_pass_that_needs_it(tmp_path):
    recipe = tmp_path / "nearest.toml"
    recipe.write_text(
        '[[pass]]\nname = "classify_blocks"\n[[pass]]\nname = "calibrate"\n'
        '[[pass]]\nname = "quantize_conv_weights"\nrounding = "nearest"\n'
    )
    ranges = calibrate(attention(), images(8), recipe=str(recipe))
    with pytest.raises(
        OnnxquantError, match=r"ranges: lack ChannelMean of tensor image, which quantize_conv_weights needs; calibrate"
    ):
        recall(attention(), ranges)


def test_a_damaged_observer_is_named(ranges):
    ranges.tensors["image"]["ChannelMean"].pop("count")
    with pytest.raises(OnnxquantError, match="ChannelMean of tensor image has total instead of count, total; make"):
        recall(attention(), ranges)


def test_only_the_observers_that_are_asked_for_need_be_known(ranges, tmp_path):
    ranges.tensors["image"]["SomethingElse"] = {"bins": [[1, 2], [3, 4]]}
    assert recall(attention(), kept(ranges, tmp_path))

    class SomethingElse(Observer):
        def __init__(self):
            self.bins = np.zeros((1, 1), np.int16)

    assert kept(ranges, tmp_path).observed("image", SomethingElse).bins.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["tensors"]["stem"]["MinMax"].update(minimum=float("nan")), "tensor stem: minimum of its MinMax"),
        (lambda d: d["tensors"]["stem"]["MinMax"].update(minimum=float("inf")), "tensor stem: minimum of its MinMax"),
        (lambda d: d["tensors"]["stem"]["MinMax"].update(minimum=None), "tensor stem: minimum of its MinMax"),
        (lambda d: d["tensors"]["stem"]["MinMax"].update(minimum="low"), "tensor stem: minimum of its MinMax"),
        (lambda d: d["tensors"]["stem"]["MinMax"].update(minimum=[1, [2]]), "tensor stem: minimum of its MinMax"),
        (lambda d: d["tensors"]["stem"].update(MinMax=[0, 1]), r"tensors\.stem\.MinMax"),
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.update(samples=0), "samples"),
        (lambda d: d.pop("fingerprint"), "fingerprint: Field required"),
        (lambda d: d.update(surprise=1), "surprise"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(ranges, tmp_path, change, message):
    document = json.loads(ranges.to_json())
    change(document)
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(OnnxquantError, match=rf"--ranges .*r\.json: .*{message}.*; make them with onnxquant calibrate"):
        Ranges.from_json(tmp_path / "r.json")


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe", b"[]", b'{"version": 1, "tens', None])
def test_a_file_that_holds_no_ranges_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(OnnxquantError, match=r"--ranges .*r\.json: .*; make them with onnxquant calibrate") as raised:
        Ranges.from_json(tmp_path / "r.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("data", "samples"), [(None, 8), (images(8), 0)])
def test_no_data_is_an_error(data, samples):
    with pytest.raises(OnnxquantError, match="calibration needs data"):
        calibrate(attention(), data, samples=samples)


def test_an_infinite_activation_is_named_with_its_sample():
    data = images(8)
    data[3] = 3e38
    with pytest.raises(OnnxquantError, match=r"tensor \w+ has NaN or infinite values on sample data\[3\]"):
        calibrate(attention(), data)


def test_activations_are_let_go_while_the_model_runs():
    """60 activations of 4 MiB in a row: far more than may be in memory at a time."""
    script = """if True:
        import resource
        import numpy as np
        from onnxquant.observation import calibrate
        from tests.graphs import parse

        steps = "".join(f"t{i + 1} = Sigmoid (t{i}) " for i in range(60))
        text = f"g (float[1, 1, 1024, 1024] t0) => (float[1, 1, 1024, 1024] t60) {{ {steps} }}"
        calibrate(parse("g (float[1, 1] x) => (float[1, 1] y) { y = Abs (x) }"), np.ones((2, 1), "f4"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ranges = calibrate(parse(text), np.ones((2, 1, 1024, 1024), "f4"))
        assert len(ranges.tensors) == 61
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    assert int(run_script(PRELUDE + script).stdout) < 100 * 1024  # KiB
