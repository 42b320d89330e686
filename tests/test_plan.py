"""The plan can be saved, read, edited by hand and applied again."""

import json

import pytest

from onnxquant import rewrite
from onnxquant.errors import OnnxquantError
from onnxquant.plan import QuantizationPlan
from tests.graphs import attention, images, parse


def test_a_saved_plan_gives_the_same_bytes_without_calibration_data(tmp_path):
    decided = rewrite(attention(), calibration=images(32))
    (tmp_path / "plan.json").write_text(decided.plan.to_json())
    applied = rewrite(attention(), plan=QuantizationPlan.from_json(tmp_path / "plan.json"))
    assert applied.model.SerializeToString() == decided.model.SerializeToString()


def test_an_edited_plan_is_what_is_applied(tmp_path):
    document = json.loads(rewrite(attention()).plan.to_json())
    document["entries"] = [entry for entry in document["entries"] if entry["role"] == "activation"]
    document["entries"][0]["quantizer"]["bits"] = 4
    (tmp_path / "plan.json").write_text(json.dumps(document))
    result = rewrite(attention(), plan=QuantizationPlan.from_json(tmp_path / "plan.json"))
    assert result.report.quantized == {"activation, log2 4 bit (emulated: stored in 8)": 1}


def test_a_plan_says_why():
    assert all(entry.why and entry.node for entry in rewrite(attention()).plan.entries)


def test_a_plan_for_another_model_is_refused():
    other = parse("g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { y = Relu (x) }")
    with pytest.raises(OnnxquantError, match=r"plan: tensor .* is not in .*; is the plan for another model"):
        rewrite(other, plan=rewrite(attention()).plan)


def test_a_plan_for_a_model_of_other_width_is_refused():
    with pytest.raises(OnnxquantError, match=r"plan: 8 scales for tensor stem_weight of shape \(16, 3, 3, 3\)"):
        rewrite(attention(channels=16), plan=rewrite(attention()).plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "version"),
        (lambda d: d["entries"][0]["quantizer"].update(bits=9), r"entries\.0\.quantizer\.uniform\.bits"),
        (lambda d: d["entries"][0]["quantizer"].update(kind="magic"), r"entries\.0\.quantizer"),
        (lambda d: d["entries"][0].update(surprise=1), r"entries\.0\.surprise"),
    ],
)
def test_a_broken_plan_is_named_with_the_entry_that_is_wrong(tmp_path, change, message):
    document = json.loads(rewrite(attention()).plan.to_json())
    change(document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(OnnxquantError, match=rf"--plan .*plan\.json: {message}"):
        QuantizationPlan.from_json(tmp_path / "plan.json")


@pytest.mark.parametrize("content", [b"not json", b"\xff\xfe", b"[]"])
def test_a_file_that_is_no_plan_is_named(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(OnnxquantError, match=r"--plan .*plan\.json: "):
        QuantizationPlan.from_json(tmp_path / "plan.json")
