"""What is asked of full TensorRT, by what a version has: stand-ins for modules that need a GPU."""

from enum import Enum, IntEnum
from types import SimpleNamespace

import pytest

from onnxquant.deploy import versions
from onnxquant.deploy.tensorrt import TensorRT
from onnxquant.deploy.versions import (
    allow_types,
    load_timing_cache,
    network_flags,
    require_builder,
    set_gpus,
    target_of,
)
from onnxquant.errors import OnnxquantError

LayerType = Enum("LayerType", ["QUANTIZE", "DEQUANTIZE", "CONVOLUTION"])
DataType = Enum("DataType", ["FLOAT", "HALF"])
BuilderFlag = Enum("BuilderFlag", ["INT8", "FP16"])
FLAGS = {
    "8.6.1": IntEnum("Flag", {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}),
    "10.9.0.34": IntEnum("Flag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1, "PREFER_AOT_PYTHON_PLUGINS": 3}),
    "11.0.0": IntEnum("Flag", {"PREFER_AOT_PYTHON_PLUGINS": 3}),
}


def tensorrt(version):
    module = SimpleNamespace(
        NetworkDefinitionCreationFlag=FLAGS[version],
        LayerType=LayerType,
        DataType=DataType,
        BuilderFlag=BuilderFlag,
        HardwareCompatibilityLevel=Enum("Level", ["NONE", "AMPERE_PLUS"]),
    )
    return TensorRT(module, f"TensorRT {version}", version, is_rtx=False, logger=None)


class Config:
    """Of full TensorRT: it has no number of compute capabilities."""

    def __init__(self, accepts_cache=True):
        self.flags = set()
        self.set_flag = self.flags.add
        self.hardware_compatibility_level = None
        self._accepts_cache = accepts_cache

    def create_timing_cache(self, data):
        self.cache = data
        return self

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        return self._accepts_cache


class Network:
    def __init__(self, *layers):
        self._layers = [
            SimpleNamespace(type=kind, get_output=lambda index, dtype=dtype: SimpleNamespace(dtype=dtype))
            for kind, dtype in layers
        ]
        self.num_layers = len(layers)

    def get_layer(self, index):
        return self._layers[index]


@pytest.mark.parametrize(("version", "flags"), [("8.6.1", 0b01), ("10.9.0.34", 0b11), ("11.0.0", 0)])
def test_networks_are_strongly_typed_with_explicit_batch_where_that_is_a_choice(version, flags):
    assert network_flags(tensorrt(version)) == flags


@pytest.mark.parametrize(
    ("layers", "flags"),
    [
        ([(LayerType.CONVOLUTION, DataType.FLOAT)], set()),
        ([(LayerType.QUANTIZE, DataType.FLOAT)], {BuilderFlag.INT8}),
        ([(LayerType.DEQUANTIZE, DataType.HALF)], {BuilderFlag.INT8, BuilderFlag.FP16}),
        ([(LayerType.CONVOLUTION, DataType.HALF)], {BuilderFlag.FP16}),
    ],
)
def test_a_weakly_typed_network_is_allowed_the_types_that_it_holds(layers, flags):
    config = Config()
    allow_types(tensorrt("8.6.1"), config, Network(*layers))
    assert config.flags == flags
    allow_types(tensorrt("10.9.0.34"), typed := Config(), Network(*layers))
    assert typed.flags == set()


def test_full_tensorrt_builds_for_the_gpu_that_is_there_and_with_hardware_compatibility_for_others(monkeypatch):
    monkeypatch.setattr(versions, "gpu_compute_capability", lambda: "8.6")
    full = tensorrt("10.9.0.34")
    for wanted, level in (([], None), (["8.6"], None), (["8.6", "8.9"], "AMPERE_PLUS"), (["12.0"], "AMPERE_PLUS")):
        config = Config()
        set_gpus(full, config, wanted)
        assert (config.hardware_compatibility_level and config.hardware_compatibility_level.name) == level
    with pytest.raises(
        OnnxquantError, match=r"--compute-capability 7\.5: TensorRT 10.* builds for the GPU here \(8\.6"
    ):
        set_gpus(full, Config(), ["7.5"])


def test_full_tensorrt_does_not_build_without_a_gpu(monkeypatch):
    monkeypatch.setattr(versions, "gpu_compute_capability", lambda: None)
    with pytest.raises(OnnxquantError, match=r"TensorRT 11\.0\.0 builds on a GPU only, .*--runtime tensorrt-rtx"):
        require_builder(tensorrt("11.0.0"))
    monkeypatch.setattr(versions, "gpu_compute_capability", lambda: "8.6")
    require_builder(tensorrt("11.0.0"))


def test_a_timing_cache_is_read_where_there_is_one_and_must_be_of_this_tensorrt(tmp_path):
    path = tmp_path / "cache"
    load_timing_cache(tensorrt("11.0.0"), config := Config(), path)
    assert config.cache == b""
    path.write_bytes(b"tactics")
    load_timing_cache(tensorrt("11.0.0"), config := Config(), path)
    assert config.cache == b"tactics"
    with pytest.raises(OnnxquantError, match=r"--timing-cache .*cache: is of another TensorRT or GPU; delete it"):
        load_timing_cache(tensorrt("11.0.0"), Config(accepts_cache=False), path)


@pytest.mark.parametrize(
    ("version", "target"), [("8.6.1", "tensorrt-8.6"), ("10.9.0.34", "tensorrt-10"), ("11.0.0", "tensorrt-11")]
)
def test_every_version_has_its_target(version, target):
    assert target_of(tensorrt(version)).name == target
