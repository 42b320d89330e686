"""Accuracy is counted on what ONNX Runtime computes; a model or data that can't be judged is an error that names it."""

import numpy as np
import onnx
import pytest

from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.errors import OnnxquantError
from onnxquant.measure.accuracy import Accuracy, evaluate
from tests.graphs import parse

LABELS = np.array([0, 1, 2, 3, 4, 5, 6, 7])


def identity(batch="N", output="float[N, 8] y", body="y = Identity (x)"):
    return parse(f"logits_are_inputs (float[{batch}, 8] x) => ({output.replace('N', batch)}) {{ {body} }}")


def scores(ranks):
    """One row for each label: the label's own logit comes at the given rank, 0 is best."""
    rows = np.tile(-np.arange(8.0, dtype=np.float32), (len(ranks), 1))
    for row, label, rank in zip(rows, LABELS, ranks, strict=False):
        order = [index for index in range(8) if index != label]
        order.insert(rank, label)
        row[order] = -np.arange(8)
    return rows


def data(model, logits, labels):
    return open_dataset({"x": logits, "labels": labels}, input_specs(model), None)


@pytest.mark.parametrize("batch", ["N", "1", "3"])
def test_hits_are_counted_whatever_the_models_batch_axis(batch):
    model = identity(batch)
    seen = []
    dataset = data(model, scores([0, 0, 1, 4, 5, 7, 0, 4]), LABELS)
    accuracy = evaluate(model, dataset, batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert (accuracy.top1, accuracy.top5, accuracy.samples) == (3 / 8, 6 / 8, 8)
    assert accuracy.seconds > 0
    assert seen[-1] == (8, 8)


def test_a_path_gives_the_same_as_the_proto(tmp_path):
    model = identity()
    onnx.save(model, tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    dataset = data(model, scores([0] * 4 + [1] * 4), LABELS)
    assert evaluate(tmp_path / "m.onnx", dataset, threads=1).top1 == evaluate(model, dataset).top1 == 0.5
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_equal_logits_go_to_the_first_class_as_argmax_does():
    model = identity()
    accuracy = evaluate(model, data(model, np.zeros((8, 8), np.float32), LABELS))
    assert (accuracy.top1, accuracy.top5) == (1 / 8, 5 / 8)


@pytest.mark.parametrize(
    ("top1", "samples", "low", "high"), [(0.5, 100, 0.40383, 0.59617), (0, 10, 0, 0.27753), (1, 10, 0.72247, 1)]
)
def test_the_interval_is_wilsons(top1, samples, low, high):
    assert Accuracy(top1, 1.0, samples, 1.0).interval == pytest.approx((low, high), abs=1e-5)


def refused(model, dataset):
    with pytest.raises(OnnxquantError) as raised:
        evaluate(model, dataset)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_data_without_labels_is_refused():
    model = identity()
    assert "data: has no labels" in refused(model, open_dataset(scores([0] * 8), input_specs(model), None))


@pytest.mark.parametrize("label", [-1, 8])
def test_a_label_that_is_no_class_of_the_model_is_refused(label):
    model = identity()
    message = refused(model, data(model, scores([0, 0]), np.array([0, label])))
    assert f"data[1]: its label is {label}, but logits_are_inputs has classes 0 to 7" in message


def test_an_output_that_is_no_row_of_logits_is_refused():
    model = identity(output="float[N, 2, 4] y", body="s = Constant <value_ints = [0, 2, 4]> ()  y = Reshape (x, s)")
    message = refused(model, data(model, scores([0, 0]), LABELS[:2]))
    assert "logits_are_inputs: its first output y has shape (2, 2, 4) for 2 samples" in message


def test_logits_that_are_not_finite_are_refused_with_the_sample():
    model = identity(body="y = Log (x)")
    logits = np.ones((2, 8), np.float32)
    logits[1, 3] = -1
    assert "output y holds NaN or infinite values on data[1]" in refused(model, data(model, logits, LABELS[:2]))


def test_a_model_that_onnx_runtime_refuses_is_named():
    model = identity()
    dataset = data(model, scores([0] * 8), LABELS)
    model.graph.node[0].op_type = "NoSuchOp"
    assert "logits_are_inputs: ONNX Runtime refuses the model" in refused(model, dataset)


def test_a_model_that_fails_while_running_is_named_with_the_sample():
    model = identity(output="float[M, 3] y", body="s = Constant <value_ints = [-1, 3]> ()  y = Reshape (x, s)")
    assert "logits_are_inputs: running it on data[0] failed" in refused(model, data(model, scores([0]), LABELS[:1]))


def test_a_file_that_is_missing_is_named(tmp_path):
    model = identity()
    assert "no.onnx: no such file" in refused(tmp_path / "no.onnx", data(model, scores([0] * 8), LABELS))


def classifier(scale=1.0):
    """Logits that are the inputs, (N, 3), times a scale."""
    return parse("g (float[N, 3] x) => (float[N, 3] y) { y = Mul (x, s) }", s=np.float32(scale))


def test_agreement_is_counted_against_a_reference_not_the_labels(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], labels=np.array([0, 1, 2, 1]))
    data = open_dataset(tmp_path / "data.npz", input_specs(classifier()), None)
    same = evaluate(classifier(), data, reference=classifier(2.0))
    opposite = evaluate(classifier(), data, reference=classifier(-1.0))
    assert (same.top1, same.agreement) == (0.75, 1.0)
    assert opposite.agreement == 0.0
    assert evaluate(classifier(), data).agreement is None


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], labels=np.array([0, 1, 2, 1]))
    data = open_dataset(tmp_path / "data.npz", input_specs(classifier()), None)
    state, seen = tmp_path / "state.json", []

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(classifier(), data, 1, interrupt, resume=state)
    whole = evaluate(classifier(), data, 1)
    resumed = evaluate(classifier(), data, 1, lambda done, total: seen.append(done), resume=state)
    assert seen == [3, 4]
    assert (resumed.top1, resumed.top5, resumed.samples) == (whole.top1, whole.top5, 4)
    assert not state.exists()


def test_the_state_of_another_evaluation_is_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.eye(3, dtype=np.float32)[[0, 1]], labels=np.array([0, 1]))
    data = open_dataset(tmp_path / "data.npz", input_specs(classifier()), None)
    state = tmp_path / "state.json"

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(classifier(), data, 1, interrupt, resume=state)
    with pytest.raises(OnnxquantError, match="is of another model or data"):
        evaluate(classifier(2.0), data, 1, resume=state)
    state.write_text("{}")
    with pytest.raises(OnnxquantError, match="not the state of an evaluation"):
        evaluate(classifier(), data, 1, resume=state)
