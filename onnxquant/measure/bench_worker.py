"""One model in a process of its own, for `onnxquant.measure.process`.

The parent starts this file by its path: importing it as a part of onnxquant would bring onnx and graphsurgeon along,
and their memory would count as the model's. Requests come on stdin and answers go to stdout, pickled:
the name of a method of `Worker` and its arguments. The process ends with stdin, so that none outlives the parent.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

if sys.path and os.path.realpath(sys.path[0] or ".") == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]  # this folder's modules must not stand in for others of the same name

SESSION_CONFIGURATION = {"session.force_spinning_stop": "1"}
"""Threads spin within a run, as they do by default, and not beyond it, where they would slow down other models."""


def main() -> None:
    """Answer requests until stdin ends: ("ok", value) or ("error", message of one line)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # ONNX Runtime prints to stdout when a provider fails
    worker = Worker()
    while True:
        try:
            name, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = ("ok", getattr(worker, name)(*arguments))
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            answer = ("error", (str(error).strip().splitlines() or [type(error).__name__])[0])
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            return


class Worker:
    """A model and what it is fed: `load` an ONNX file, or `load_engine` and `bind`; then take turns.

    Or `load_engine`, and `run` for its outputs.
    """

    _run: Callable[[], object]

    def load(
        self, path: str, feeds: dict[str, Any], providers: list[str], threads: int | None, entries: dict[str, str]
    ) -> tuple[float, list[str]]:
        """Create the session; returns the seconds that took and the providers it uses, the preferred one first.

        Args:
            path: of the ONNX file.
            feeds: an array for every input.
            providers: of ONNX Runtime, the preferred one first.
            threads: for one operator; None for ONNX Runtime's own choice.
            entries: session configuration, which goes before `SESSION_CONFIGURATION`.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        for key, value in {**SESSION_CONFIGURATION, **entries}.items():
            options.add_session_config_entry(key, value)
        start = time.perf_counter()
        session = ort.InferenceSession(path, options, providers=providers)
        seconds = time.perf_counter() - start
        self._run = lambda: session.run(None, feeds)
        return seconds, session.get_providers()

    def load_engine(self, path: str, module: str) -> tuple[float, int | None, list[tuple[Any, ...]]]:
        """Load a TensorRT engine.

        Returns:
            The seconds from the file to something that can be run, the bytes of its weights (None where TensorRT
            doesn't tell), and for every input its name, type, shape (-1 for a dynamic axis) and the minimum, optimum
            and maximum shape of the first optimization profile.

        Args:
            path: of the engine.
            module: of the TensorRT that built it, "tensorrt" or "tensorrt_rtx".
        """
        self._trt = trt = importlib.import_module(module)
        self._errors: list[str] = []
        logger = _logger(trt, self._errors)
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(logger, "")
        self._kept: list[Any] = [logger, runtime := trt.Runtime(logger)]
        start = time.perf_counter()
        with open(path, "rb") as file:
            engine = self._checked(runtime.deserialize_cuda_engine(file.read()))
        self._context = self._checked(engine.create_execution_context())
        seconds = time.perf_counter() - start
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._engine = engine
        self._buffers: list[int] = []  # on the GPU, of the last `bind`
        self._stream: int | None = None
        weights = engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE) if hasattr(trt, "EngineStat") else None
        return seconds, weights, list(map(self._input, self._inputs))

    def _input(self, name: str) -> tuple[Any, ...]:
        shape = tuple(self._engine.get_tensor_shape(name))
        bounds = [shape] * 3
        if -1 in shape:
            bounds = [tuple(bound) for bound in self._engine.get_tensor_profile_shape(name, 0)]
        dtype = self._trt.nptype(self._engine.get_tensor_dtype(name))
        return name, dtype.__name__, shape, bounds

    def bind(self, feeds: dict[str, Any]) -> None:
        """Copy an array for every input of the engine to the GPU, and make room for the outputs there.

        Runs are timed without copies: from the call until the GPU is done.
        """
        try:
            from polygraphy import cuda
        except ModuleNotFoundError:
            raise RuntimeError("polygraphy is missing; install it with pip install 'onnxquant[polygraphy]'") from None
        try:
            gpu = cuda.wrapper()
        except OSError as error:
            raise RuntimeError(
                f"the CUDA runtime can't be loaded ({error}); install it with pip install nvidia-cuda-runtime-cu12, or "
                "put its folder on LD_LIBRARY_PATH"
            ) from None
        self._cuda, context = cuda, self._context
        while self._buffers:
            gpu.free(self._buffers.pop())

        def allocate(nbytes: int) -> int:
            self._buffers.append(gpu.malloc(max(nbytes, 1)))
            return self._buffers[-1]

        for name in self._inputs:
            array = feeds[name].copy(order="C")
            self._checked(context.set_input_shape(name, array.shape))
            if self._engine.get_tensor_location(name) == self._trt.TensorLocation.HOST:  # the values of a shape
                address = array.ctypes.data
                self._kept.append(array)
            else:
                address = allocate(array.nbytes)
                gpu.memcpy(address, array.ctypes.data, array.nbytes, cuda.MemcpyKind.HostToDevice)
            self._checked(context.set_tensor_address(name, address))
        for name in self._outputs:
            self._checked(context.set_tensor_address(name, allocate(context.get_max_output_size(name))))
        self._stream = stream = self._stream or gpu.create_stream()

        def run() -> None:
            self._checked(context.execute_async_v3(stream))
            gpu.stream_synchronize(stream)

        self._run = run

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Run the engine once on an array for every input; returns its outputs by name."""
        import numpy as np

        self.bind(feeds)
        self._run()
        context, cuda, outputs = self._context, self._cuda, {}
        for name in self._outputs:
            dtype = self._trt.nptype(self._engine.get_tensor_dtype(name))
            outputs[name] = array = np.empty(tuple(context.get_tensor_shape(name)), dtype)
            address = context.get_tensor_address(name)
            cuda.wrapper().memcpy(array.ctypes.data, address, array.nbytes, cuda.MemcpyKind.DeviceToHost)
        return outputs

    def _checked(self, result: Any) -> Any:
        """What a call to TensorRT returned, unless it says that the call failed."""
        if result is None or result is False:
            raise RuntimeError(next(iter(self._errors), "TensorRT doesn't say why"))
        return result

    def turn(self, warm_seconds: float, timed_seconds: float) -> list[float]:
        """Run for `warm_seconds`, then for `timed_seconds`, each time once at least; returns the seconds of every run
        of the latter.
        """
        self._run_for(warm_seconds)
        return self._run_for(timed_seconds)

    def _run_for(self, seconds: float) -> list[float]:
        times: list[float] = []
        first = time.perf_counter()
        while not times or time.perf_counter() - first < seconds:
            start = time.perf_counter()
            self._run()
            times.append(time.perf_counter() - start)
        return times

    def memory(self) -> int | None:
        """Peak resident memory of this process, in bytes; None where the system doesn't tell."""
        try:
            # ru_maxrss won't do on Linux: a process inherits that of its parent, peak included.
            with open("/proc/self/status", encoding="ascii") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            pass
        try:
            import resource
        except ImportError:
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _logger(trt: Any, errors: list[str]) -> Any:
    """An `ILogger` that keeps errors and drops the rest."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Logger()


if __name__ == "__main__":
    main()
