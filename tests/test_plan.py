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
    with pytest.raises(
        OnnxquantError, match=r"tensor stem_weight of shape \(16, 3, 3, 3\) can't have 8 scales on axis 0"
    ):
        rewrite(attention(channels=16), plan=rewrite(attention()).plan)


def test_a_plan_keeps_its_target_and_fits_no_stricter_one():
    plan = rewrite(attention(), target="onnxruntime").plan
    with pytest.raises(OnnxquantError, match="is to be uint8, which target tensorrt refuses"):
        rewrite(attention(), plan=plan, target="tensorrt")
    symmetric = rewrite(attention(), target="tensorrt")
    assert rewrite(attention(), plan=symmetric.plan).model.SerializeToString() == symmetric.model.SerializeToString()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"tensor": "stem_bias"}, "stem_bias is not the weight of a Conv"),
        ({"tensor": "q_weight"}, r"q_weight of shape \(8, 8\) can't have 8 scales on axis 0"),
        ({"tensor": "act"}, "act is not the weight of a Conv"),
        ({"role": "activation"}, "is not a value that is computed"),
        ({"rounding": {"mode": "sum_preserving", "channel_mean": [1.0]}}, "has 3 input channels, but 1 means"),
    ],
)
def test_an_entry_that_does_not_fit_the_graph_is_named(entry, message):
    document = json.loads(rewrite(attention()).plan.to_json())
    document["entries"] = [{**document["entries"][0], **entry}]
    with pytest.raises(OnnxquantError, match=message):
        rewrite(attention(), plan=QuantizationPlan.model_validate(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["entries"][0]["quantizer"]["scale"].__setitem__(0, 0.0), "every scale must be a number above 0"),
        (lambda d: d["entries"][0]["quantizer"]["scale"].__setitem__(0, None), "every scale must be a number above 0"),
        (lambda d: d["entries"][0]["quantizer"]["zero_point"].__setitem__(0, 2**40), "zero_point must be a code"),
        (lambda d: d["entries"][0]["quantizer"]["zero_point"].pop(), "lists of one length"),
        (lambda d: d["entries"][2]["quantizer"].update(minimum=0.9, maximum=0.1), "minimum must not be above maximum"),
        (lambda d: d["entries"].append(d["entries"][0]), "tensor stem_weight has two entries"),
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
    with pytest.raises(OnnxquantError, match=rf"--plan .*plan\.json: .*{message}"):
        QuantizationPlan.from_json(tmp_path / "plan.json")


@pytest.mark.parametrize("content", [b"not json", b"\xff\xfe", b"[]"])
def test_a_file_that_is_no_plan_is_named(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(OnnxquantError, match=r"--plan .*plan\.json: "):
        QuantizationPlan.from_json(tmp_path / "plan.json")
