"""From an ONNX model to a TensorRT engine.

TensorRT is called directly: polygraphy's loaders bind to one of the two TensorRTs when they are imported, log the
parser's errors instead of passing them on, and let Ctrl-C raise inside of C++ code, which ends the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxquant.deploy.parse import parse
from onnxquant.deploy.profiles import ShapeRange, profile_shapes
from onnxquant.deploy.progress import TOTAL
from onnxquant.deploy.tensorrt import find_tensorrt, first_error
from onnxquant.deploy.versions import (
    allow_types,
    load_timing_cache,
    network_flags,
    require_builder,
    set_gpus,
    set_monitor,
    target_of,
)
from onnxquant.errors import OnnxquantError
from onnxquant.files import write_bytes
from onnxquant.graph.model import PROTOBUF_LIMIT, read_proto
from onnxquant.measure.weights import weight_bytes
from onnxquant.targets.check import require_accepted


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        plan: the serialized engine: what goes into a .plan or .engine file.
        runtime: what built it, and can run it: "TensorRT-RTX 1.7.1".
        compute_capabilities: GPUs that were asked for; empty for TensorRT's own choice.
        profile: minimum, optimum and maximum shape of every dynamic input.
        parse_seconds: that the parser took for the ONNX model.
        build_seconds: that the builder took.
        weight_bytes: of the ONNX model's initializers.
        warnings: TensorRT's.
    """

    plan: bytes
    runtime: str
    compute_capabilities: tuple[str, ...]
    profile: dict[str, ShapeRange]
    parse_seconds: float
    build_seconds: float
    weight_bytes: int
    warnings: tuple[str, ...]


def build_engine(
    model: onnx.ModelProto | Path,
    *,
    compute_capabilities: Sequence[str] = (),
    batch: tuple[int, int, int] | None = None,
    shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
    timing_cache: Path | None = None,
    workspace: int | None = None,
    runtime: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Engine:
    """Parse and build: without a GPU in TensorRT-RTX, on the GPU that the engine is for in full TensorRT.

    Args:
        model: ONNX model, or the path of its file. A model of more than 2 GiB must be a file.
        compute_capabilities: of the GPUs to build for, "8.6" for example. By default TensorRT-RTX builds for all that
            it supports from 8.0 on, and TensorRT for the present GPU.
        batch: minimum, optimum and maximum of a dynamic first axis; `profiles.DEFAULT_BATCH` by default.
        shapes: minimum, optimum and maximum shape by input, for those with other dynamic axes.
        timing_cache: file that is read if it exists, and written; full TensorRT only.
        workspace: bytes of GPU memory that a layer may use for intermediate results.
        runtime: "tensorrt" or "tensorrt-rtx"; by default the first that is installed.
        progress: called with (done, total) during the build, from another thread.

    Raises:
        OnnxquantError: there is no TensorRT, or it refuses the model or an option.
        KeyboardInterrupt: Ctrl-C; the build has ended then.
    """
    tensorrt = find_tensorrt(runtime)
    require_builder(tensorrt)
    path = model if isinstance(model, Path) else None
    proto = read_proto(model) if isinstance(model, Path) else model
    name = str(path or proto.graph.name or "model")
    if path is None and proto.ByteSize() > PROTOBUF_LIMIT:
        raise OnnxquantError(f"{name}: has more than 2 GiB; save it as a file, and give its path")
    profile = profile_shapes(proto, name, batch, shapes)
    target = target_of(tensorrt)
    lowest = min(compute_capabilities, key=target.parse_compute_capability, default=None)
    require_accepted(proto, target, name, lowest)

    tensorrt.logger.clear()
    builder = tensorrt.module.Builder(tensorrt.logger)
    config = builder.create_builder_config()
    set_gpus(tensorrt, config, compute_capabilities)
    monitor = set_monitor(tensorrt, config, progress)
    if workspace is not None:
        config.set_memory_pool_limit(tensorrt.module.MemoryPoolType.WORKSPACE, workspace)
    if timing_cache:
        load_timing_cache(tensorrt, config, timing_cache)

    def work() -> tuple[bytes, float, float]:
        start = time.perf_counter()
        network = builder.create_network(network_flags(tensorrt))
        parser = parse(tensorrt, network, proto, path, name)
        parsed = time.perf_counter()
        allow_types(tensorrt, config, network)
        if profile:
            config.add_optimization_profile(_trt_profile(builder, profile))
        plan = builder.build_serialized_network(network, config)
        del parser
        if plan is None:
            raise OnnxquantError(f"{name}: {tensorrt.name} can't build it: {first_error(tensorrt)}")
        return bytes(plan), parsed - start, time.perf_counter() - parsed

    # In a thread of its own: Ctrl-C is raised in the main thread, which must not be inside of C++ code then.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            plan, parse_seconds, build_seconds = future.result()
        except KeyboardInterrupt:
            if monitor is not None:
                monitor.cancel()
            raise
        except OnnxquantError:
            if monitor is not None and monitor.failure is not None:
                raise monitor.failure from None
            raise
    progress(TOTAL, TOTAL)
    if timing_cache:
        write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()), "--timing-cache")
    return Engine(
        plan=plan,
        runtime=tensorrt.name,
        compute_capabilities=tuple(compute_capabilities),
        profile=profile,
        parse_seconds=parse_seconds,
        build_seconds=build_seconds,
        weight_bytes=weight_bytes(proto),
        warnings=tuple(tensorrt.logger.warnings),
    )


def _trt_profile(builder: Any, shapes: Mapping[str, ShapeRange]) -> Any:
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    return profile
