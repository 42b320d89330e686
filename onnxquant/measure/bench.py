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
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxquant.calibration.batching import batches
from onnxquant.calibration.samples import Dataset, Feed, InputSpec, input_specs
from onnxquant.errors import OnnxquantError
from onnxquant.measure.gpu_memory import open_gpu_memory
from onnxquant.preprocessing import Preprocessing

REWARM_SECONDS = 0.005
"""What the runs of a turn that don't count take, one at least."""

TIMED_SECONDS = 0.02
"""What the timed runs of a turn take, one at least. Quick models run often: their times scatter most."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""What ``--provider`` takes. What a provider can't run goes to those before it."""

ENGINES = frozenset({".engine", ".plan", ".trt"})

_WORKER = Path(__file__).with_name("bench_worker.py")
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


@dataclass(frozen=True)
class Timing:
    """What was measured of one model.

    Attributes:
        model: its path.
        seconds: of every timed run, in order.
        rounds: what a run took in each round, in seconds: the lower quartile, which other work on the machine disturbs
            less than the median.
        ratio: of its time for a sample to the first model's: the median over the rounds.
        ratio_interval: 95 % confidence interval of `ratio`.
        batch: samples in one run.
        load_seconds: creation of the session, from a file that has been read before.
        memory_bytes: peak resident memory of the process, Python and ONNX Runtime included; None where unknown.
        gpu_bytes: memory on the GPU; None on the CPU and where unknown.
        file_bytes: size of the file, external data included.
        weight_bytes: of the initializers.
    """

    model: str
    seconds: tuple[float, ...]
    rounds: tuple[float, ...]
    ratio: float
    ratio_interval: tuple[float, float]
    batch: int
    load_seconds: float
    memory_bytes: int | None
    gpu_bytes: int | None
    file_bytes: int
    weight_bytes: int

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
        models: paths of ONNX files.
        feeds: what each is run on, over and over.
        rounds: timed turns of each.
        warmup: rounds before them that don't count.
        threads: that one operator may use; ONNX Runtime's own choice by default.
        provider: a key of `PROVIDERS`.
        session_options: configuration entries for every session, ``session.disable_quant_qdq`` for example.
        timeout: seconds that one step of one model, loading or a turn, may take.
        progress: called with (rounds done, rounds in all).

    Raises:
        OnnxquantError: a model that can't be read, loaded or run, or takes longer than `timeout`; a process that died;
            a provider that isn't there.
    """
    wanted = require_provider(provider)
    sizes = [_sizes(path) for path in models]
    gpu = None if provider == "cpu" else open_gpu_memory()
    gpu_bytes: list[int | None] = []
    loaded: list[float] = []
    seconds: list[list[list[float]]] = [[] for _ in models]
    with ExitStack() as stack:
        processes = [stack.enter_context(_Process(path, timeout)) for path in models]
        for process, feed in zip(processes, feeds, strict=True):
            try:
                if gpu:
                    gpu.start()
                load_seconds, used = process.ask(
                    "load", str(process.path), dict(feed), wanted, threads, dict(session_options or {})
                )
                if used[0] != wanted[0]:  # ONNX Runtime falls back without a word
                    raise OnnxquantError(
                        f"{process.path}: {wanted[0]} can't be started, ONNX Runtime fell back to {used[0]}; look "
                        "whether its libraries (CUDA, cuDNN, TensorRT) and the GPU's driver are there"
                    )
                process.ask("turn", 0.0, 0.0)
            finally:
                taken = gpu.stop(process.pid) if gpu else None
            gpu_bytes.append(taken)
            loaded.append(load_seconds)
        for done in range(warmup + rounds):
            progress(done, warmup + rounds)
            for process, times in zip(processes, seconds, strict=True):
                times.append(process.ask("turn", REWARM_SECONDS, TIMED_SECONDS))
        progress(warmup + rounds, warmup + rounds)
        memory = [process.ask("memory") for process in processes]
    batch = [_rows(feed) for feed in feeds]
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
            load_seconds=loaded[i],
            memory_bytes=memory[i],
            gpu_bytes=gpu_bytes[i],
            file_bytes=sizes[i][0],
            weight_bytes=sizes[i][1],
        )
        for i, path in enumerate(models)
    ]


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


def refuse_engine(path: Path) -> None:
    """Raise for a TensorRT engine.

    Raises:
        OnnxquantError: `path` is named like one.
    """
    if path.suffix.lower() in ENGINES:
        raise OnnxquantError(
            f"{path}: TensorRT engines can't be measured yet; give the .onnx file it was built from, "
            "with --provider tensorrt"
        )


def random_feed(
    model: onnx.ModelProto, name: str, batch: int = 1, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Seeded random inputs: floats from a normal distribution, bytes over their range, other integers 0 or 1.

    Args:
        model: for its inputs and metadata.
        name: what messages call it.
        batch: size of a dynamic first axis.
        shapes: of inputs, by name. What they don't give comes from the input size in the model's own preprocessing.
        seed: of the values; models with the same inputs are given the same.

    Raises:
        OnnxquantError: the size of an axis is unknown, a shape doesn't fit, or an input is neither numbers nor bools.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    preprocessing = Preprocessing.from_metadata(metadata, name)
    image = (3, *preprocessing.input_size) if preprocessing else ()
    rng = np.random.default_rng(seed)
    feed: dict[str, NDArray[Any]] = {}
    for spec in input_specs(model):
        given = (shapes or {}).get(spec.name)
        shape = _fitting(spec, given, name) if given is not None else _shape(spec, name, batch, image)
        feed[spec.name] = _random(rng, shape, spec, name)
    return feed


def data_feed(dataset: Dataset, model: onnx.ModelProto, batch: int = 1) -> Feed:
    """The first `batch` samples of `dataset` as one run's inputs, or as many as the model's fixed batch axis says.

    Raises:
        OnnxquantError: there are not so many.
    """
    specs = input_specs(model)
    first = next(batches(dataset, batch, specs), None)
    fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in specs)
    if first is None or (not fixed and _rows(first.feeds) < batch):
        raise OnnxquantError(f"{dataset.name}: has {len(dataset)} samples, too few for --batch {batch}")
    return first.feeds


def _rows(feed: Feed) -> int:
    """Samples in one run."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def _shape(spec: InputSpec, name: str, batch: int, image: tuple[int, ...]) -> tuple[int, ...]:
    known = [batch, *image] if len(spec.shape) == 1 + len(image) else [batch]
    sizes = [axis if isinstance(axis, int) else size for axis, size in zip(spec.shape, known, strict=False)]
    rest = spec.shape[len(sizes) :]
    if any(not isinstance(axis, int) for axis in rest):
        raise OnnxquantError(
            f"{name}: input {spec} has dynamic axes; give its shape, for example --shape {spec.name}=1x3x224x224"
        )
    return (*sizes, *(axis for axis in rest if isinstance(axis, int)))


def _fitting(spec: InputSpec, given: Sequence[int], name: str) -> tuple[int, ...]:
    fits = len(given) == len(spec.shape) and all(
        size == axis or not isinstance(axis, int) for size, axis in zip(given, spec.shape, strict=True)
    )
    if not fits:
        text = "x".join(map(str, given))
        raise OnnxquantError(f"--shape {spec.name}={text}: doesn't fit input {spec} of {name}")
    return tuple(given)


def _random(rng: np.random.Generator, shape: tuple[int, ...], spec: InputSpec, name: str) -> NDArray[Any]:
    if np.issubdtype(spec.dtype, np.floating):
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype in (np.uint8, np.int8):
        return rng.integers(0, 256, shape).astype(spec.dtype)
    if np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(spec.dtype)  # any vocabulary and any mask has these
    raise OnnxquantError(f"{name}: input {spec} can't be filled with random values; give some with --data")


def _sizes(path: Path) -> tuple[int, int]:
    """Bytes of the file with its external data, and of its initializers."""
    proto = onnx.load(path, load_external_data=False)
    tensors = list(_initializers(proto.graph))
    outside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    files = [path, *(path.parent / location for location in outside)]
    return sum(file.stat().st_size for file in files), sum(map(_nbytes, tensors))


def _initializers(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """Those of the graph and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _initializers(subgraph)


def _nbytes(tensor: onnx.TensorProto) -> int:
    bits = _PACKED_BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type))
    bits = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


class _Process:
    """A worker process; as a context it is gone afterwards, whatever happened."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.path, self._timeout = path, timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self.pid = self._process.pid

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):  # what could not be written no longer matters
                assert stream is not None
                stream.close()

    def ask(self, *request: Any) -> Any:
        """The worker's answer.

        Raises:
            OnnxquantError: it reports an error, died, or takes longer than the timeout.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        start = time.monotonic()
        timer = threading.Timer(self._timeout, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            pickle.dump(request, stdin)
            stdin.flush()
            outcome, value = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise self._died(request[0], time.monotonic() - start >= self._timeout) from None
        finally:
            timer.cancel()
        if outcome == "error":
            what = "ONNX Runtime refuses the model" if request[0] == "load" else "running it failed"
            raise OnnxquantError(f"{self.path}: {what}: {value}")
        return value

    def _died(self, request: str, late: bool) -> OnnxquantError:
        code = self._process.wait()
        if late:
            what = "loading" if request == "load" else "running"
            return OnnxquantError(
                f"{self.path}: {what} it took more than {self._timeout:g} s; give it more time with --timeout"
            )
        if code < 0:
            name = signal.Signals(-code).name
            reason = "; the system may have run out of memory" if name == "SIGKILL" else ""
            return OnnxquantError(f"{self.path}: its process was killed by {name}{reason}")
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        return OnnxquantError(f"{self.path}: its process ended with exit code {code}: {said[-1]}")
