"""The instruments say what a few lines of numpy, pillow and ONNX Runtime say, on the demo model."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from onnxquant import rewrite, save
from onnxquant.cli.options import open_data
from onnxquant.measure.accuracy import evaluate
from onnxquant.measure.compare import compare

DEMO = Path(__file__).parents[2] / "models" / "demo"
MODEL = DEMO / "mobilevit_xxs_digits.onnx"


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewritten") / "q.onnx"
    save(rewrite(MODEL, calibration=DEMO / "digits_train.npz").model, path)
    return path


@pytest.fixture(scope="module")
def plain():
    """Inputs and labels, made without onnxquant."""
    properties = {prop.key: prop.value for prop in onnx.load(MODEL).metadata_props}
    recorded = json.loads(properties["onnxquant.preprocessing"])
    digits = np.load(DEMO / "digits.npz")
    size = tuple(reversed(recorded["input_size"]))
    resized = [
        Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC) for image in digits["images"]
    ]
    pixels = np.stack([np.asarray(image, np.float32) / np.float32(255) for image in resized])
    inputs = (pixels - np.float32(recorded["mean"])) / np.float32(recorded["std"])
    return inputs.transpose(0, 3, 1, 2), digits["labels"]


@pytest.fixture(scope="module")
def logits(plain, rewritten):
    """Of both models."""
    sessions = [ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (MODEL, rewritten)]
    parts = np.array_split(plain[0], 20)
    return [np.concatenate([each.run(None, {"input": part})[0] for part in parts]) for each in sessions]


def test_top_1_and_top_5_are_exactly_those_of_a_plain_script(plain, rewritten, logits):
    _, labels = plain
    for path, outputs in zip((MODEL, rewritten), logits, strict=True):
        best = np.argsort(-outputs, axis=1)
        accuracy = evaluate(path, open_data(str(DEMO / "digits.npz"), MODEL))
        assert accuracy.samples == len(labels) == 797
        assert accuracy.top1 == np.mean(best[:, 0] == labels)
        assert accuracy.top5 == np.mean((best[:, :5] == labels[:, None]).any(axis=1))


def test_agreement_is_that_of_a_plain_script(rewritten, logits):
    reference, test = (outputs.astype(np.float64) for outputs in logits)
    measured = compare(MODEL, rewritten, open_data(str(DEMO / "digits.npz"), MODEL), per_layer=False).outputs["logits"]
    sqnr = 10 * np.log10((reference**2).sum() / ((reference - test) ** 2).sum())
    cosine = (reference * test).sum() / np.linalg.norm(reference) / np.linalg.norm(test)
    assert measured.top1_agreement == np.mean(reference.argmax(1) == test.argmax(1))
    assert measured.sqnr_db == pytest.approx(sqnr, abs=0.01)
    assert measured.cosine == pytest.approx(cosine, abs=1e-7)
