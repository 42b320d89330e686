"""Data is opened from wherever it lies; what does not fit the model is an error that names it."""

import io
import itertools
import sys
import tracemalloc
import zipfile

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from PIL import Image

from onnxquant.calibration import images, scripts
from onnxquant.calibration.dataset import (
    InputSpec,
    batches,
    input_specs,
    open_dataset,
    parse_slice,
    split_held,
    take,
)
from onnxquant.errors import OnnxquantError
from onnxquant.preprocessing import Preprocessing
from tests.graphs import parse

F32 = np.dtype(np.float32)
IMAGE = [InputSpec("image", ("N", 3, 4, 4), F32)]
VECTOR = [InputSpec("x", ("N", 3), F32)]
TWO = [InputSpec("x", ("N", 3), F32), InputSpec("ids", ("N", 2), np.dtype(np.int64))]
UNIT = Preprocessing(input_size=(4, 4), crop_pct=1.0, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))


def png(value=0, size=(5, 6)):
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, "PNG")
    return stream.getvalue()


def noise(size=50):
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write(kind, tmp_path, files):
    return write_folder(tmp_path / "data", files) if kind == "folder" else write_zip(tmp_path / "data.zip", files)


def vectors(n):
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3)


def refused(source, specs=VECTOR, preprocessing=UNIT, **options):
    """The message of the error, one line, that opening and reading the source ends with."""
    with pytest.raises(OnnxquantError) as raised:
        list(open_dataset(source, specs, preprocessing, **options))
    assert "\n" not in str(raised.value)
    return str(raised.value)


# The inputs of a model


def test_an_initializer_among_the_inputs_is_not_an_input():
    proto = parse(
        "g (float[N, 3] x, float[3] w, int64[2, 4] ids) => (float[N, 3] y) { y = Mul (x, w) }", w=np.float32([1, 2, 3])
    )
    expected = [InputSpec("x", ("N", 3), F32), InputSpec("ids", (2, 4), np.dtype(np.int64))]
    assert input_specs(proto) == expected
    assert input_specs(gs.import_onnx(proto)) == expected


def test_an_input_without_a_shape_is_an_error_that_names_it():
    proto = parse("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(OnnxquantError, match="input x is not a tensor of known type and rank"):
        input_specs(proto)


# Images


@pytest.mark.parametrize("kind", ["folder", "zip"])
class TestImages:
    def test_come_sorted_by_path_whatever_the_depth(self, kind, tmp_path):
        path = write(kind, tmp_path, {"b.png": png(2), "a/c.PNG": png(1), "notes.txt": b"-", "a/._c.png": b"-"})
        dataset = open_dataset(path, IMAGE, UNIT)
        assert [sample.name for sample in dataset] == [f"{path}/a/c.PNG", f"{path}/b.png"]
        assert dataset.labels is None
        assert dataset[0].feeds["image"].shape == (1, 3, 4, 4)
        assert dataset[0].feeds["image"].dtype == np.float32
        assert (dataset[1].feeds["image"] == np.float32(2 / 255)).all()

    def test_are_labelled_by_the_sorted_names_of_their_folders(self, kind, tmp_path):
        path = write(kind, tmp_path, {"top/dog/1.png": png(), "top/cat/9.png": png(), "top/cat/10.png": png()})
        dataset = open_dataset(path, IMAGE, UNIT)
        assert dataset.labels == [0, 0, 1]
        assert [sample.label for sample in dataset] == [0, 0, 1]

    def test_are_labelled_by_the_models_own_classes_where_the_folders_are_named_so(self, kind, tmp_path):
        path = write(kind, tmp_path, {"dog/1.png": png(), "cat/2.png": png()})
        assert open_dataset(path, IMAGE, UNIT, classes=["dog", "bird", "cat"]).labels == [2, 0]

    def test_are_labelled_by_number_where_the_folders_are_numbers(self, kind, tmp_path):
        path = write(kind, tmp_path, {"0/a.png": png(), "2/a.png": png(), "10/a.png": png()})
        assert open_dataset(path, IMAGE, UNIT).labels == [0, 10, 2]

    def test_have_no_labels_where_the_folders_cannot_be_the_models_classes(self, kind, tmp_path):
        path = write(kind, tmp_path, {"monday/1.png": png(), "tuesday/2.png": png()})
        assert open_dataset(path, IMAGE, UNIT, classes=["cat", "dog", "bird"]).labels is None

    def test_need_at_least_one(self, kind, tmp_path):
        path = write(kind, tmp_path, {"notes.txt": b"-"})
        message = refused(path, IMAGE)
        assert message.startswith(f"{path}: no images")
        assert ".png" in message

    @pytest.mark.parametrize(
        "content",
        [b"", b"no image", png()[:40], noise()[:4000], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
        ids=["empty", "text", "header only", "truncated", "EPS, which would be run"],
    )
    def test_that_are_broken_are_named(self, kind, tmp_path, content):
        path = write(kind, tmp_path, {"a.png": png(), "b/broken.png": content})
        assert open_dataset(path, IMAGE, UNIT)[0].name.endswith("a.png")
        assert refused(path, IMAGE).startswith(f"{path}/b/broken.png: can't be read as an image (")

    def test_that_claim_far_too_many_pixels_are_refused_unread(self, kind, tmp_path, monkeypatch):
        path = write(kind, tmp_path, {"bomb.png": png(size=(300, 300))})
        assert len(list(open_dataset(path, IMAGE, UNIT))) == 1
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert f"{path}/bomb.png: far too many pixels" in refused(path, IMAGE)

    def test_that_unpack_to_far_too_many_bytes_are_refused_unread(self, kind, tmp_path, monkeypatch):
        path = write(kind, tmp_path, {"bomb.png": bytes(5000)})
        monkeypatch.setattr(images, "MAX_FILE_BYTES", 4999)
        assert f"{path}/bomb.png: can't be read as an image (it has 5000 bytes, too many" in refused(path, IMAGE)

    def test_per_class_keeps_positions_of_every_class_in_file_order(self, kind, tmp_path):
        path = write(kind, tmp_path, {f"{c}/{i}.png": png() for c in ("cat", "dog") for i in range(5)})
        held = open_dataset(path, IMAGE, UNIT, per_class=slice(3, None))
        assert [sample.name[-9:] for sample in held] == ["cat/3.png", "cat/4.png", "dog/3.png", "dog/4.png"]
        assert held.labels == [0, 0, 1, 1]

    def test_without_known_preprocessing_are_refused_rather_than_guessed_at(self, kind, tmp_path):
        path = write(kind, tmp_path, {"a.png": png()})
        message = refused(path, IMAGE, None)
        assert message.startswith(f"{path}: how to turn images into image float32 (N, 3, 4, 4) is unknown")
        assert "--preprocess imagenet" in message

    @pytest.mark.parametrize(
        ("specs", "said"),
        [
            ([InputSpec("g", ("N", 1, 4, 4), F32)], "g float32 (N, 1, 4, 4)"),
            (VECTOR, "x float32 (N, 3)"),
            (TWO, "ids int64 (N, 2)"),
            ([InputSpec("i", ("N", 3, 4, 4), np.dtype(np.uint8))], "i uint8 (N, 3, 4, 4)"),
        ],
    )
    @pytest.mark.parametrize("preprocessing", [UNIT, None])
    def test_for_a_model_that_takes_none_are_refused(self, kind, tmp_path, specs, said, preprocessing):
        assert said in refused(write(kind, tmp_path, {"a.png": png()}), specs, preprocessing)


def test_images_of_another_size_than_the_models_are_refused(tmp_path):
    path = write_folder(tmp_path / "data", {"a.png": png()})
    assert len(open_dataset(path, [InputSpec("b", ("N", 3, 4, None), F32)], UNIT)) == 1
    message = refused(path, [InputSpec("b", ("N", 3, 8, None), F32)])
    assert "gives 4x4 images, but the model takes b float32 (N, 3, 8, ?)" in message


def test_a_float16_model_gets_float16_images(tmp_path):
    path = write_folder(tmp_path / "data", {"a.png": png(255)})
    spec = InputSpec("image", ("N", 3, "H", "W"), np.dtype(np.float16))
    assert open_dataset(path, [spec], UNIT)[0].feeds["image"].dtype == np.float16


def test_a_broken_zip_is_named(tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(write_zip(tmp_path / "whole.zip", {"a.png": png()}).read_bytes()[:-10])
    assert refused(path, IMAGE).startswith(f"{path}: not a zip file, or a truncated one")


def test_images_are_decoded_when_asked_for_so_memory_does_not_grow_with_their_number(tmp_path):
    big = png(size=(500, 500))  # 750 kB once decoded
    path = write_zip(tmp_path / "data.zip", {f"{i}.png": big for i in range(40)})
    tracemalloc.start()
    try:
        dataset = open_dataset(path, IMAGE, UNIT)
        for batch in batches(dataset, 4, IMAGE):
            assert batch.valid == 4
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


# Arrays


def test_an_npz_keyed_by_input_name_is_fed_as_it_is(tmp_path):
    np.savez(tmp_path / "d.npz", x=vectors(4).astype(np.float64), ids=np.ones((4, 2), np.int32), labels=[3, 1, 2, 0])
    dataset = open_dataset(tmp_path / "d.npz", TWO, None)
    assert len(dataset) == 4
    assert dataset.labels == [3, 1, 2, 0]
    sample = dataset[1]
    assert (sample.name, sample.label) == (f"{tmp_path}/d.npz[1]", 1)
    assert sample.feeds["x"].dtype == np.float32
    assert sample.feeds["x"].tolist() == [[3, 4, 5]]
    assert sample.feeds["ids"].dtype == np.int64


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_single_array_goes_to_the_single_input(tmp_path, suffix):
    path = tmp_path / f"d.{suffix}"
    np.save(path, vectors(2)) if suffix == "npy" else np.savez(path, x=vectors(2))
    assert [sample.feeds["x"].tolist() for sample in open_dataset(str(path), VECTOR, None)] == [
        [[0, 1, 2]],
        [[3, 4, 5]],
    ]


@pytest.mark.parametrize("key", ["images", "image", "anything"])
@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 5, 1), (2, 6, 5, 3)])
def test_uint8_arrays_are_raw_images(shape, key):
    dataset = open_dataset({key: np.full(shape, 51, np.uint8), "labels": np.array([1, 0])}, IMAGE, UNIT)
    assert dataset.labels == [1, 0]
    assert (dataset[0].feeds["image"] == np.float32(0.2)).all()
    assert dataset[0].feeds["image"].shape == (1, 3, 4, 4)


def test_uint8_arrays_for_a_uint8_input_are_fed_as_they_are():
    spec = InputSpec("pixels", ("N", 2, 2, 3), np.dtype(np.uint8))
    assert open_dataset(np.full((5, 2, 2, 3), 7, np.uint8), [spec], None)[4].feeds["pixels"].dtype == np.uint8


def test_arrays_that_share_no_batch_axis_are_one_sample():
    specs = [InputSpec("x", ("N", 3), F32), InputSpec("threshold", (), F32)]
    (sample,) = open_dataset({"x": vectors(4), "threshold": np.float32(1)}, specs, None)
    assert sample.feeds["x"].shape == (4, 3)
    assert sample.feeds["threshold"].shape == ()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"picture": vectors(2)}, "data: has arrays for picture, but the model's inputs are x; name the arrays like"),
        ({"y": vectors(2), "z": vectors(2)}, "data: has arrays for y, z, but the model's inputs are x"),
        (vectors(2)[..., None], "input x has shape (2, 3, 1), but the model takes x float32 (N, 3)"),
        (vectors(2)[:, :2], "input x has shape (2, 2), but the model takes x float32 (N, 3)"),
        (vectors(2).astype(np.int64), "input x has dtype int64, but the model takes x float32 (N, 3)"),
        (vectors(2) > 1, "input x has dtype bool"),
        (vectors(0), "input x is empty, its shape is (0, 3)"),
        (np.array([[None] * 3]), "input x has dtype object"),
        (np.array([[0, np.nan, 0]], np.float32), "data[0]: input x holds NaN or infinite values"),
        (np.array([[0, 0, 0], [0, -np.inf, 0]]), "data[1]: input x holds NaN or infinite values"),
        (np.array([[0, 1e300, 0]]), "data[0]: input x holds NaN or infinite values as float32"),
        ({"x": vectors(2), "labels": np.array([1])}, "1 labels for 2 samples"),
        ({"x": vectors(2), "labels": np.array([1.0, 2.0])}, "labels must be class indices"),
        ({"x": vectors(2), "labels": np.array([[1], [2]])}, "labels must be class indices"),
        ({}, "data: has arrays for nothing, but the model's inputs are x"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_was_expected_and_given(arrays, said):
    assert said in refused(arrays)


def test_integers_are_widened_but_never_narrowed():
    specs = [InputSpec("ids", ("N",), np.dtype(np.int32))]
    assert open_dataset(np.array([1, 2], np.int16), specs, None)[0].feeds["ids"].dtype == np.int32
    assert "input ids has dtype int64" in refused(np.array([1, 2]), specs)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (8, 8), (2, 8, 8, 4), (0, 8, 8)])
def test_raw_images_of_another_shape_are_refused(shape):
    assert (
        f"uint8 images must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), with none of them 0, not {shape}"
        in refused(np.zeros(shape, np.uint8), IMAGE)
    )


def test_raw_images_and_labels_must_be_as_many():
    assert "2 labels for 3 samples" in refused({"images": np.zeros((3, 8, 8), np.uint8), "labels": np.arange(2)}, IMAGE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *itertools.product(["d.npy", "d.npz"], ["text", "truncated", "objects", "empty", "bad header"]),
        ("d.npz", "encrypted"),
    ],
)
def test_array_files_that_are_broken_or_hold_python_objects_are_refused(tmp_path, name, content):
    path, stream = tmp_path / name, io.BytesIO()
    array = np.array([{}, {}], dtype=object) if content == "objects" else np.zeros((50, 3))
    if name.endswith("npy"):
        np.save(stream, array, allow_pickle=True)
    else:
        np.savez(stream, allow_pickle=True, x=array)
    whole = stream.getvalue()
    flag = whole.find(b"PK\x01\x02") + 8  # of the zip's directory entry; bit 0 means encrypted
    contents = {
        "text": b"1 2 3",
        "truncated": whole[:-300],
        "objects": whole,
        "empty": b"",
        "bad header": whole.replace(b"{'descr'", b"{{'desc("),
        "encrypted": whole[:flag] + b"\x01" + whole[flag + 1 :],
    }
    path.write_bytes(contents[content])
    assert refused(path).startswith(f"{path}: not a .{name[2:]} file, a truncated one, or one with Python objects")


def test_an_npy_file_is_mapped_and_not_read_as_a_whole(tmp_path):
    np.save(tmp_path / "d.npy", np.zeros((1_000_000, 3), np.float32))
    tracemalloc.start()
    try:
        dataset = open_dataset(tmp_path / "d.npy", [InputSpec("x", ("N", 3), F32)], None)
        assert dataset[999_999].feeds["x"].shape == (1, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


# Feeds, from Python, from scripts and from polygraphy


def test_feeds_with_a_shared_batch_axis_are_split():
    dataset = open_dataset(iter([{"x": vectors(2)}, {"x": vectors(1)}]), VECTOR, None)
    assert [sample.feeds["x"].shape for sample in dataset] == [(1, 3)] * 3
    assert dataset[1].feeds["x"].tolist() == [[3, 4, 5]]


def test_a_data_set_is_taken_as_it_is():
    dataset = open_dataset(vectors(4), VECTOR, None)
    assert open_dataset(dataset, VECTOR, None) is dataset
    assert len(open_dataset(dataset, VECTOR, None, limit=3)) == 3


def test_an_endless_generator_is_read_up_to_the_limit():
    def endless():
        while True:
            yield {"x": vectors(1)}

    assert len(open_dataset(endless(), VECTOR, None, limit=5)) == 5


def test_an_endless_generator_without_a_limit_is_stopped(monkeypatch):
    monkeypatch.setattr(scripts, "MAX_BYTES", 100)
    assert "say how many with --limit" in refused({"x": vectors(1)} for _ in iter(int, 1))


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ([], "data: gives no samples"),
        ([vectors(1)], "data: feed 0 is a ndarray, not a dict of arrays"),
        (3, "data: gives a int, not dicts of arrays"),
        ([{"x": vectors(1)}, {"y": vectors(1)}], "data: feed 1: has arrays for y, but the model's inputs are x"),
        ([{"x": vectors(1)}, {"x": vectors(1)[0]}], "data: feed 1: input x has shape (3,)"),
        ([{"x": [[1.0], [1.0, 2.0]]}], "data: feed 0 does not hold arrays of numbers"),
        ([{"x": "text"}], "input x has dtype <U4"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_by_number(feeds, said):
    assert said in refused(feeds)


def script(tmp_path, body):
    path = tmp_path / "loader.py"
    path.write_text(body)
    return path


def test_a_script_gives_what_its_load_data_yields_and_what_it_prints_goes_to_stderr(tmp_path, capsys):
    (tmp_path / "helper_beside_it.py").write_text("VALUE = 7.0")
    path = script(
        tmp_path,
        "import numpy as np\nimport helper_beside_it\nprint('hello')\n"
        "def load_data():\n    for i in range(3):\n"
        "        yield {'x': np.full((1, 3), helper_beside_it.VALUE + i, np.float32)}\n"
        "def other():\n    return [{'x': np.zeros((2, 3), np.float32)}]\n",
    )
    before = list(sys.path)
    assert [sample.feeds["x"][0, 0] for sample in open_dataset(path, VECTOR, None)] == [7, 8, 9]
    assert len(open_dataset(f"{path}:other", VECTOR, None)) == 2
    assert open_dataset(f"{path}:other", VECTOR, None)[1].name == f"{path}:other[1]"
    assert sys.path == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "has no function load_data()"),
        ("load_data = 3", "has no function load_data()"),
        ("def load_data(:", "the script failed with SyntaxError"),
        ("import no_such_module", "the script failed with ModuleNotFoundError: No module named 'no_such_module'"),
        ("def load_data():\n    raise ValueError('disk on\\nfire')", "the script failed with ValueError: disk on"),
        ("def load_data():\n    yield from ()", "gives no samples"),
        ("def load_data():\n    return {'x': 1}", "feed 0 is a str, not a dict of arrays"),
        ("def load_data():\n    pass", "gives a NoneType, not dicts of arrays"),
    ],
)
def test_a_script_that_fails_is_named_with_the_reason(tmp_path, body, said):
    path = script(tmp_path, body)
    message = refused(path)
    assert message.startswith(str(path))
    assert said in message


def test_inputs_that_polygraphy_saved_are_read(tmp_path):
    json = pytest.importorskip("polygraphy.json")
    json.save_json([{"x": vectors(1)}, {"x": vectors(2)}], str(tmp_path / "list.json"))
    json.save_json({"x": vectors(1)}, str(tmp_path / "one.json"))
    assert len(open_dataset(tmp_path / "list.json", VECTOR, None)) == 3
    assert len(open_dataset(tmp_path / "list.json", VECTOR, None, limit=1)) == 1
    assert open_dataset(tmp_path / "one.json", VECTOR, None)[0].feeds["x"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("text", ["{", "3", '{"x": {"polygraphy_class": "Foo"}}', "[]"])
def test_json_of_another_kind_is_refused_and_nothing_is_printed(tmp_path, capsys, text):
    pytest.importorskip("polygraphy.json")
    path = tmp_path / "d.json"
    path.write_text(text)
    assert refused(path).startswith(f"{path}: ")
    assert capsys.readouterr() == ("", "")


def test_without_polygraphy_its_json_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "d.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "polygraphy.json", None)
    assert "pip install 'onnxquant[polygraphy]'" in refused(tmp_path / "d.json")


# Whatever the source


@pytest.mark.parametrize(
    "name", ["no_such", "no_such.zip", "no_such.npz", "no_such.json", "no_such.py", "no_such.py:load"]
)
def test_a_missing_source_is_named(tmp_path, name):
    assert refused(tmp_path / name).startswith(f"{tmp_path}/{name.partition(':')[0]}: no such file or folder; give")


def test_a_file_of_an_unknown_kind_is_named(tmp_path):
    (tmp_path / "d.csv").write_text("1,2,3")
    assert refused(tmp_path / "d.csv").startswith(f"{tmp_path}/d.csv: not a kind of data")


def test_a_model_without_inputs_needs_no_data():
    assert "it has no inputs" in refused(vectors(1), [])


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit):
    assert f"--limit {limit}" in refused(vectors(2), limit=limit)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4500:", slice(4500, None)), (":100", slice(None, 100)), ("10:20", slice(10, 20)), ("-5:", slice(-5, None))],
)
def test_a_slice_is_written_as_in_python(text, expected):
    assert parse_slice(text) == expected


@pytest.mark.parametrize("text", ["", "5", "a:b", "1:2:3", "1.5:"])
def test_any_other_slice_text_is_an_error_that_shows_how(text):
    with pytest.raises(OnnxquantError, match=r"--per-class .*START:STOP"):
        parse_slice(text)


def test_per_class_needs_labels_and_must_leave_something():
    labelled = {"x": vectors(4), "labels": np.array([0, 1, 0, 1])}
    assert open_dataset(labelled, VECTOR, None, per_class=slice(1, None)).labels == [0, 1]
    assert "--per-class needs labels" in refused(vectors(4), per_class=slice(1, None))
    assert "--per-class 2: leaves no sample, the largest class has 2" in refused(labelled, per_class=slice(2, None))


def test_take_is_even_deterministic_and_never_more_than_there_is():
    dataset = open_dataset(vectors(100), VECTOR, None)
    indices = [int(sample.feeds["x"][0, 0]) // 3 for sample in take(dataset, 10)]
    assert [index // 10 for index in indices] == list(range(10))
    assert indices == [int(sample.feeds["x"][0, 0]) // 3 for sample in take(dataset, 10)]
    assert take(dataset, 100) is dataset
    assert take(dataset, 1000) is dataset


@pytest.mark.parametrize("labels", [np.arange(1000) % 10, np.arange(1000) // 100], ids=["repeating", "sorted"])
@pytest.mark.parametrize("n", [20, 50, 100])
def test_samples_that_are_taken_are_of_all_classes(labels, n):
    dataset = open_dataset({"x": vectors(1000), "labels": labels}, VECTOR, None)
    assert set(take(dataset, n).labels) == set(range(10))
    calibration, held = split_held(dataset, n)
    assert set(calibration.labels) == set(range(10))
    assert set(held.labels) == set(range(10))


@pytest.mark.parametrize(
    ("total", "n", "calibration", "held"),
    [
        (100, 10, 10, 10),
        (20, 10, 10, 10),
        (19, 10, 10, 4),
        (12, 10, 9, 3),
        (8, 32, 6, 2),
        (3, 9, 2, 1),
        (2, 9, 1, 1),
        (1, 9, 1, 0),
    ],
)
def test_held_back_samples_are_disjoint_from_those_to_calibrate_on(total, n, calibration, held):
    parts = split_held(open_dataset(vectors(total), VECTOR, None), n)
    assert tuple(map(len, parts)) == (calibration, held)
    names = [sample.name for part in parts for sample in part]
    assert len(set(names)) == len(names)


# Batches


def test_batches_follow_the_asked_size_where_the_axis_is_dynamic():
    dataset = open_dataset({"x": vectors(5), "labels": np.arange(5)}, VECTOR, None)
    found = list(batches(dataset, 2, VECTOR))
    assert [batch.feeds["x"].shape for batch in found] == [(2, 3), (2, 3), (1, 3)]
    assert [batch.labels for batch in found] == [(0, 1), (2, 3), (4,)]
    assert found[1].names == ("data[2]", "data[3]")
    assert [batch.valid for batch in found] == [2, 2, 1]


def test_a_fixed_batch_of_one_goes_one_by_one():
    specs = [InputSpec("x", (1, 3), F32)]
    dataset = open_dataset(vectors(3), specs, None)
    assert [batch.feeds["x"].shape for batch in batches(dataset, 32, specs)] == [(1, 3)] * 3


def test_a_larger_fixed_batch_is_filled_up_and_says_how_much_of_it_counts():
    specs = [InputSpec("x", (4, 3), F32)]
    dataset = open_dataset(vectors(5), specs, None)
    full, last = batches(dataset, 1, specs)
    assert (full.valid, full.padded) == (4, 0)
    assert (last.valid, last.padded) == (1, 3)
    assert last.names == ("data[4]",)
    assert last.feeds["x"].tolist() == [[12, 13, 14]] * 4
    assert last.without_padding(last.feeds["x"]).shape == (1, 3)
    assert last.without_padding(np.zeros((6, 3))).shape == (6, 3), "axis 0 is no batch"
    assert last.without_padding(np.zeros((16, 3))).shape == (4, 3), "four windows of the one sample that counts"


def test_samples_of_different_shape_cannot_share_a_batch_and_the_odd_one_is_named():
    specs = [InputSpec("x", ("N", "W"), F32)]
    dataset = open_dataset([{"x": np.zeros((1, 3), np.float32)}, {"x": np.zeros((1, 4), np.float32)}], specs, None)
    assert len(list(batches(dataset, 1, specs))) == 2
    with pytest.raises(
        OnnxquantError, match=r"data\[1\]: input x has shape \(1, 4\), but data\[0\] before it \(1, 3\)"
    ):
        list(batches(dataset, 2, specs))


def test_a_sample_that_cannot_be_split_is_a_batch_of_its_own():
    specs = [InputSpec("x", ("N", 3), F32), InputSpec("threshold", (), F32)]
    dataset = open_dataset([{"x": vectors(4), "threshold": 1.0}, {"x": vectors(2), "threshold": 2.0}], specs, None)
    assert [batch.feeds["x"].shape for batch in batches(dataset, 8, specs)] == [(4, 3), (2, 3)]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(OnnxquantError, match="--batch-size 0"):
        list(batches(open_dataset(vectors(1), VECTOR, None), 0, VECTOR))
