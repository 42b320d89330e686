"""Latency, load time and memory of models, measured so that they can be compared.

Sessions that share a process, or whose threads spin while they wait, slow each other down up to tenfold. So every model
has a process of its own, threads stop spinning with the run, and one model runs at a time: each has a turn in every
round. What the machine does meanwhile (clocks, heat, other work) meets all models alike, and two models are compared
round by round.

After the others' turns a model's caches are cold, which no loop that runs one model would show: a turn begins with runs
that don't count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnxquant.calibration.samples import Feed
from onnxquant.deploy.tensorrt import TensorRT
from onnxquant.errors import OnnxquantError
from onnxquant.measure.engines import engine_runtime, is_engine
from onnxquant.measure.feeds import batch_size
from onnxquant.measure.gpu_memory import GpuMemory, open_gpu_memory
from onnxquant.measure.process import WorkerProcess
from onnxquant.measure.weights import initializers, weight_bytes

REWARM_SECONDS = 0.005
"""What the runs of a turn that don't count take, one at least."""

TIMED_SECONDS = 0.02
"""What the timed runs of a turn take, one at least. Quick models run often: their times scatter most."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""What ``--provider`` takes. What a provider can't run goes to those before it."""


@dataclass(frozen=True)
class Timing:
    """What was measured of one model.

    Attributes:
        model: its path.
        runtime: what it ran in: "ONNX Runtime", or "TensorRT-RTX 1.7.1" for an engine.
        seconds: of every timed run, in order. An engine's inputs and outputs stay on the GPU.
        rounds: what a run took in each round, in seconds: the lower quartile, which other work on the machine disturbs
            less than the median.
        ratio: of its time for a sample to the first model's: the median over the rounds.
        ratio_interval: 95 % confidence interval of `ratio`.
        batch: samples in one run.
        load_seconds: creation of the session, or engine and context, from a file that has been read before.
        memory_bytes: peak resident memory of the process, Python and the runtime included; None where unknown.
        gpu_bytes: memory on the GPU; None on the CPU and where unknown.
        file_bytes: size of the file, external data included.
        weight_bytes: of the initializers, or of the engine's weights; None where TensorRT doesn't tell.
    """

    model: str
    runtime: str
    seconds: tuple[float, ...]
    rounds: tuple[float, ...]
    ratio: float
    ratio_interval: tuple[float, float]
    batch: int
    load_seconds: float
    memory_bytes: int | None
    gpu_bytes: int | None
    file_bytes: int
    weight_bytes: int | None

    def percentile(self, q: float) -> float:
        """Seconds that `q` percent of the runs took at most."""
        return float(np.percentile(self.seconds, q))

    @property
    def samples_per_second(self) -> float:
        return self.batch / self.percentile(50)


def bench(
    models: Sequence[Path],
    feeds: Sequence[Feed],
    *,
    rounds: int = 50,
    warmup: int = 5,
    threads: int | None = None,
    provider: str = "cpu",
    session_options: Mapping[str, str] | None = None,
    timeout: float = 600,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timing]:
    """Time models against each other.

    Args:
        models: paths of ONNX files, and of TensorRT engines.
        feeds: what each is run on, over and over.
        rounds: timed turns of each.
        warmup: rounds before them that don't count.
        threads: that one operator may use; ONNX Runtime's own choice by default.
        provider: a key of `PROVIDERS`; like `threads` and `session_options` it is for the ONNX files.
        session_options: configuration entries for every session, ``session.disable_quant_qdq`` for example.
        timeout: seconds that one step of one model, loading or a turn, may take.
        progress: called with (rounds done, rounds in all).

    Raises:
        OnnxquantError: a model that can't be read, loaded or run, or takes longer than `timeout`; a process that died;
            a provider, TensorRT or GPU that isn't there.
    """
    engines = {path: engine_runtime(path) for path in models if is_engine(path)}
    session = _Session(require_provider(provider), threads, dict(session_options or {}))
    on_gpu = [path in engines or provider != "cpu" for path in models]
    gpu = open_gpu_memory() if any(on_gpu) else None
    loaded: list[_Loaded] = []
    seconds: list[list[list[float]]] = [[] for _ in models]
    with ExitStack() as stack:
        processes = [stack.enter_context(WorkerProcess(path, timeout)) for path in models]
        for process, feed, uses_gpu in zip(processes, feeds, on_gpu, strict=True):
            runtime = engines.get(process.path, session)
            loaded.append(_load(process, feed, runtime, gpu if uses_gpu else None))
        for done in range(warmup + rounds):
            progress(done, warmup + rounds)
            for process, times in zip(processes, seconds, strict=True):
                times.append(process.ask("turn", REWARM_SECONDS, TIMED_SECONDS))
        progress(warmup + rounds, warmup + rounds)
        memory = [process.ask("memory") for process in processes]
    batch = [batch_size(feed) for feed in feeds]
    timed = [times[warmup:] for times in seconds]
    quartiles = np.array([[np.quantile(turn, 0.25) for turn in times] for times in timed])
    per_sample = quartiles / np.array(batch)[:, None]
    ratios = per_sample / per_sample[0]
    # The order statistics that enclose the median of so many draws with a probability of 95 %.
    half = min(0.5, 0.98 / math.sqrt(rounds))
    low, ratio, high = np.quantile(ratios, [0.5 - half, 0.5, 0.5 + half], axis=1).tolist()
    return [
        Timing(
            model=str(path),
            seconds=tuple(chain.from_iterable(timed[i])),
            rounds=tuple(quartiles[i].tolist()),
            ratio=ratio[i],
            ratio_interval=(low[i], high[i]),
            batch=batch[i],
            memory_bytes=memory[i],
            **asdict(loaded[i]),
        )
        for i, path in enumerate(models)
    ]


@dataclass(frozen=True)
class _Session:
    """How ONNX Runtime is to run models: see `bench`."""

    providers: list[str]
    threads: int | None
    entries: dict[str, str]


@dataclass(frozen=True)
class _Loaded:
    """What is known of a model once it has been loaded: see `Timing`."""

    runtime: str
    load_seconds: float
    gpu_bytes: int | None
    file_bytes: int
    weight_bytes: int | None


def _load(process: WorkerProcess, feed: Feed, runtime: _Session | TensorRT, gpu: GpuMemory | None) -> _Loaded:
    """Load a model in its process, and run it once."""
    path, taken = process.path, None
    if gpu:
        gpu.start()
    try:
        if isinstance(runtime, TensorRT):
            name, file_bytes = runtime.name, path.stat().st_size
            seconds, weights, _ = process.ask("load_engine", str(path), runtime.module.__name__)
            process.ask("bind", dict(feed))
        else:
            name, (file_bytes, weights), wanted = "ONNX Runtime", _sizes(path), runtime.providers
            seconds, used = process.ask("load", str(path), dict(feed), wanted, runtime.threads, runtime.entries)
            if used[0] != wanted[0]:  # ONNX Runtime falls back without a word
                raise OnnxquantError(
                    f"{path}: {wanted[0]} can't be started, ONNX Runtime fell back to {used[0]}; look whether its "
                    "libraries (CUDA, cuDNN, TensorRT) and the GPU's driver are there"
                )
        process.ask("turn", 0.0, 0.0)
    finally:
        if gpu:
            taken = gpu.stop(process.pid)
    return _Loaded(name, seconds, taken, file_bytes, weights)


def require_provider(provider: str) -> list[str]:
    """ONNX Runtime's names of `provider` and those it leaves the rest to.

    Raises:
        OnnxquantError: the installed ONNX Runtime doesn't have it.
    """
    available, wanted = ort.get_available_providers(), PROVIDERS[provider]
    if wanted not in available:
        raise OnnxquantError(
            f"--provider {provider}: the installed ONNX Runtime has no {wanted}, only {', '.join(available)}; "
            "install onnxruntime-gpu in its place"
        )
    preferred = list(PROVIDERS.values())[: list(PROVIDERS).index(provider) + 1]
    return [name for name in reversed(preferred) if name in available]


def _sizes(path: Path) -> tuple[int, int]:
    """Bytes of the file with its external data, and of its initializers."""
    proto = onnx.load(path, load_external_data=False)
    tensors = initializers(proto.graph)
    outside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    files = [path, *(path.parent / location for location in outside)]
    return sum(file.stat().st_size for file in files), weight_bytes(proto)
