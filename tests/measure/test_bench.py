"""Models are timed against each other: in processes of their own, in turns, and leaving nothing behind."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxquant.errors import OnnxquantError
from onnxquant.measure import bench as module
from onnxquant.measure import process as process_module
from onnxquant.measure.bench import PROVIDERS, bench, require_provider
from tests.graphs import attention, images, parse

RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"
LOOP = """g (int64 n, float[4] x) => (float[4] y) {
    go = Constant <value = bool {1}> ()
    y = Loop <body = body (int64 i, bool c, float[4] a) => (bool d, float[4] b) { d = Identity (c) b = Cos (a) }>
        (n, go, x)
}"""


@pytest.fixture
def processes(monkeypatch):
    """The processes that are started; all must have ended with the test."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(process_module.subprocess, "Popen", Recorded)
    yield started
    assert started
    assert all(process.returncode is not None for process in started)


@pytest.fixture
def path(tmp_path):
    onnx.save(attention(), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def save(proto, path):
    onnx.save(proto, path)
    return path


def feed(batch=1):
    return {"image": images(batch)}


def test_every_figure_of_a_model_is_one(path, processes):
    a, b = bench([path, path], [feed(), feed(2)], rounds=4, warmup=1)
    assert len(processes) == 2
    for timing, batch in ((a, 1), (b, 2)):
        assert (timing.model, timing.runtime) == (str(path), "ONNX Runtime")
        assert timing.batch == batch
        assert len(timing.rounds) == 4
        assert len(timing.seconds) >= 4
        assert 0 < min(timing.seconds) <= timing.percentile(10) <= timing.percentile(50) <= timing.percentile(90) < 60
        assert timing.samples_per_second == batch / timing.percentile(50)
        assert 0 < timing.load_seconds < 60
        assert timing.gpu_bytes is None
        assert timing.file_bytes == path.stat().st_size
        weights = (onnx.numpy_helper.to_array(tensor) for tensor in attention().graph.initializer)
        assert timing.weight_bytes == sum(array.nbytes for array in weights)
    assert (a.ratio, a.ratio_interval) == (1, (1, 1))
    assert b.ratio_interval[0] <= b.ratio <= b.ratio_interval[1]
    assert 0 < b.ratio < 100


def test_peak_memory_is_the_models_own_not_that_of_the_process_that_started_it(path, processes):
    ballast = np.ones(500_000_000, np.uint8)
    (timing,) = bench([path], [feed()], rounds=1)
    assert 10e6 < timing.memory_bytes < ballast.nbytes


def test_models_take_turns_after_each_has_been_loaded_alone(path, monkeypatch):
    asked = []
    ask = module.WorkerProcess.ask
    monkeypatch.setattr(
        module.WorkerProcess, "ask", lambda self, *request: asked.append((self.path, request[0])) or ask(self, *request)
    )
    other = save(attention(), path.with_name("b.onnx"))
    seen = []
    bench([path, other], [feed(), feed()], rounds=2, warmup=1, progress=lambda *step: seen.append(step))
    assert [(p.stem, what) for p, what in asked] == [
        *(("a", "load"), ("a", "turn"), ("b", "load"), ("b", "turn")),
        *[("a", "turn"), ("b", "turn")] * 3,
        *(("a", "memory"), ("b", "memory")),
    ]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_ratio_is_taken_round_by_round_and_does_not_see_the_machine_slow_down(path, monkeypatch):
    class Process:
        def __init__(self, path, timeout):
            self.path, self.round = path, -1  # the first turn belongs to loading

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, what, *arguments):
            if what == "load":
                return 0.5, arguments[2]
            if what == "memory":
                return 1
            self.round += 1
            speed = 2 if self.path.stem == "b" else 1
            disturbed = 100 if (self.path.stem, self.round) == ("b", 7) else 1
            return [0.001 * self.round * speed * disturbed] * 2

    monkeypatch.setattr(module, "WorkerProcess", Process)
    other = save(attention(), path.with_name("b.onnx"))
    a, b = bench([path, other], [feed(1), feed(4)], rounds=20, warmup=2)
    assert a.rounds == tuple(0.001 * position for position in range(3, 23))
    assert b.ratio == pytest.approx(2 / 4)
    assert b.ratio_interval == pytest.approx((2 / 4, 2 / 4))
    assert b.memory_bytes == 1
    assert b.load_seconds == 0.5


def test_external_data_counts_as_the_files_and_weights_are_counted_without_it(tmp_path, processes):
    path = tmp_path / "a.onnx"
    inside = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in attention().graph.initializer)
    onnx.save(attention(), path, save_as_external_data=True, location="a.bin", size_threshold=100)
    (timing,) = bench([path], [feed()], rounds=1, warmup=0)
    assert timing.file_bytes == path.stat().st_size + (tmp_path / "a.bin").stat().st_size
    assert (tmp_path / "a.bin").stat().st_size > 1000
    assert timing.weight_bytes == inside


def test_weights_of_subgraphs_count_and_four_bit_weights_take_half_a_byte(tmp_path):
    proto = parse(RELU, halves=np.ones((3, 5), np.float16))
    proto.graph.initializer.append(helper.make_tensor("nibbles", TensorProto.INT4, [3], [1, 2, 3]))
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2])],
    )
    proto.graph.node.append(helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch))
    assert module._sizes(save(proto, tmp_path / "a.onnx"))[1] == 15 * 2 + 2 + 2 * 8


def test_session_options_reach_the_session(path, processes):
    bench([path], [feed()], rounds=1, session_options={"session.intra_op.allow_spinning": "0"})
    with pytest.raises(OnnxquantError, match=r"a\.onnx: ONNX Runtime refuses the model: Config value is longer"):
        bench([path], [feed()], rounds=1, session_options={"session.disable_prepacking": "x" * 10_000})


def test_a_model_that_the_runtime_refuses_is_named(tmp_path, processes):
    path = save(parse(RELU), tmp_path / "odd.onnx")
    proto = onnx.load(path)
    proto.graph.node[0].domain = "nobody"
    proto.opset_import.append(helper.make_opsetid("nobody", 1))
    onnx.save(proto, path)
    with pytest.raises(OnnxquantError, match=r"odd\.onnx: ONNX Runtime refuses the model: .*nobody") as raised:
        bench([path], [{"x": np.ones((1, 4), np.float32)}], rounds=1)
    assert "\n" not in str(raised.value)


def test_a_model_that_can_not_run_on_what_it_is_fed_is_named(path, processes):
    with pytest.raises(OnnxquantError, match=r"a\.onnx: running it failed: .*image"):
        bench([path, path], [feed(), {"image": images(1)[:, :, :4]}], rounds=1)


def test_a_model_that_takes_too_long_is_stopped(tmp_path, processes):
    path = save(parse(LOOP), tmp_path / "slow.onnx")
    with pytest.raises(OnnxquantError, match=r"slow\.onnx: running it took more than 1 s; .*--timeout"):
        bench([path], [{"n": np.array(10**12), "x": np.ones(4, np.float32)}], timeout=1)
    assert processes[0].returncode == -signal.SIGKILL


def test_a_process_that_is_killed_is_an_error_that_names_its_model(path, processes):
    other = save(attention(), path.with_name("b.onnx"))

    def kill(done, total):
        os.kill(processes[1].pid, signal.SIGKILL)

    with pytest.raises(OnnxquantError, match=r"b\.onnx: its process was killed by SIGKILL; .*out of memory"):
        bench([path, other], [feed(), feed()], rounds=3, progress=kill)


def test_a_process_that_can_not_start_says_why(path, processes, monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module")
    monkeypatch.setattr(process_module, "_WORKER", tmp_path / "broken.py")
    with pytest.raises(OnnxquantError, match=r"a\.onnx: its process ended with exit code 1: .*no_such_module"):
        bench([path], [feed()])


def test_an_interrupt_leaves_no_process(path, processes):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench([path, path], [feed(), feed()], progress=interrupt)
    assert len(processes) == 2


def test_a_worker_ends_with_its_parent_and_not_with_an_interrupt():
    worker = subprocess.Popen([sys.executable, process_module._WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pickle.dump(("memory",), worker.stdin)
    worker.stdin.flush()
    assert pickle.load(worker.stdout)[0] == "ok"
    worker.send_signal(signal.SIGINT)
    pickle.dump(("memory",), worker.stdin)
    worker.stdin.flush()
    assert pickle.load(worker.stdout)[0] == "ok"
    worker.communicate(timeout=30)
    assert worker.returncode == 0


def test_modules_beside_the_worker_and_in_the_working_directory_stand_in_for_none(path, processes, monkeypatch):
    (path.parent / "numpy.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(path.parent)
    assert bench([Path(path.name)], [feed()], rounds=1)


def test_a_provider_that_is_not_installed_is_an_error_that_lists_those_that_are():
    assert require_provider("cpu") == ["CPUExecutionProvider"]
    with pytest.raises(OnnxquantError, match=r"--provider tensorrt: .* no TensorrtExecutionProvider, only .*CPUExec"):
        require_provider("tensorrt")


def test_a_provider_leaves_the_rest_to_those_that_are_installed(monkeypatch):
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: list(PROVIDERS.values()))
    assert require_provider("tensorrt") == [PROVIDERS["tensorrt"], PROVIDERS["cuda"], PROVIDERS["cpu"]]
    assert require_provider("cuda") == [PROVIDERS["cuda"], PROVIDERS["cpu"]]


def test_a_provider_that_falls_back_is_an_error(path, processes, monkeypatch):
    monkeypatch.setattr(module, "require_provider", lambda provider: [PROVIDERS["cuda"], PROVIDERS["cpu"]])
    with pytest.raises(OnnxquantError, match=r"a\.onnx: CUDAExecutionProvider can't be started.*fell back to CPUExec"):
        bench([path], [feed()], provider="cuda")


def test_gpu_memory_is_measured_while_each_model_is_loaded_and_run_alone(path, processes, monkeypatch):
    calls = []

    class Gpu:
        def start(self):
            calls.append("start")

        def stop(self, pid):
            calls.append(pid)
            return len(calls)

    monkeypatch.setattr(module, "require_provider", lambda provider: [PROVIDERS["cpu"]])
    monkeypatch.setattr(module, "open_gpu_memory", Gpu)
    timings = bench([path, path], [feed(), feed()], rounds=1, provider="cuda")
    assert calls == ["start", processes[0].pid, "start", processes[1].pid]
    assert [timing.gpu_bytes for timing in timings] == [2, 4]
