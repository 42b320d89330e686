"""The zoo's table, against timm: names, preprocessing and attention; and Mobile-Former, which timm lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxquant.export import DEFAULT_OPSET, export
from onnxquant.preprocessing import Preprocessing
from onnxquant.zoo import load_zoo

pytestmark = pytest.mark.export

ZOO = load_zoo()
IN_TIMM = [name for name, model in ZOO.items() if model.timm]


@pytest.mark.parametrize("name", IN_TIMM)
def test_name_and_preprocessing_are_timms(name: str) -> None:
    import timm

    arch = ZOO[name].timm
    assert timm.is_model(arch)
    published = timm.get_pretrained_cfg(arch)
    assert published.num_classes == 1000
    config = timm.data.resolve_data_config(pretrained_cfg=published.to_dict())
    fields = {key: config[key] for key in Preprocessing.model_fields}
    assert Preprocessing.model_validate(fields | {"input_size": config["input_size"][-2:]}) == ZOO[name].preprocessing


@pytest.mark.parametrize("name", IN_TIMM)
def test_attention_is_counted_as_timm_builds_it(name: str) -> None:
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(ZOO[name].timm)
    kinds = [type(module).__name__ for module in model.modules()]
    built = [kind for kind in kinds if re.search("Attention(2d|2dDownsample|Downsample)?$|Attn", kind)]
    assert len(built) == ZOO[name].attention


def test_name_of_the_zoo_exports_what_timm_calls_otherwise(tmp_path: Path) -> None:
    paths = [export(name, tmp_path / f"{name}.onnx", seed=0) for name in ("deit_t", "deit_tiny_patch16_224")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_mobile_former_computes_the_same_in_onnx_runtime() -> None:
    import numpy as np
    import onnxruntime as ort
    import torch

    from tools.mobile_former import MobileFormer, export_mobile_former

    torch.manual_seed(0)
    model = MobileFormer().eval()
    images = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        expected = model(images).numpy()
    for exporter in DEFAULT_OPSET:
        session = ort.InferenceSession(export_mobile_former(exporter).SerializeToString())
        np.testing.assert_allclose(session.run(None, {"input": images.numpy()})[0], expected, atol=1e-4)
