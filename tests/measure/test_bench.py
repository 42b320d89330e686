"""Models are timed against each other: in processes of their own, in turns, and leaving nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxquant.calibration.dataset import input_specs, open_dataset
from onnxquant.errors import OnnxquantError
from onnxquant.measure import bench as module
from onnxquant.measure.bench import PROVIDERS, bench, data_feed, random_feed, refuse_engine, require_provider
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

    monkeypatch.setattr(module.subprocess, "Popen", Recorded)
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
        assert timing.model == str(path)
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
    ask = module._Process.ask
    monkeypatch.setattr(
        module._Process, "ask", lambda self, *request: asked.append((self.path, request[0])) or ask(self, *request)
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

    monkeypatch.setattr(module, "_Process", Process)
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
    monkeypatch.setattr(module, "_WORKER", tmp_path / "broken.py")
    with pytest.raises(OnnxquantError, match=r"a\.onnx: its process ended with exit code 1: .*no_such_module"):
        bench([path], [feed()])


def test_an_interrupt_leaves_no_process(path, processes):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench([path, path], [feed(), feed()], progress=interrupt)
    assert len(processes) == 2


def test_a_worker_ends_with_its_parent_and_not_with_an_interrupt():
    worker = subprocess.Popen([sys.executable, module._WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    module.pickle.dump(("memory",), worker.stdin)
    worker.stdin.flush()
    assert module.pickle.load(worker.stdout)[0] == "ok"
    worker.send_signal(signal.SIGINT)
    module.pickle.dump(("memory",), worker.stdin)
    worker.stdin.flush()
    assert module.pickle.load(worker.stdout)[0] == "ok"
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


@pytest.mark.parametrize("name", ["a.engine", "a.plan", "A.TRT"])
def test_tensorrt_engines_are_refused(name):
    with pytest.raises(OnnxquantError, match="TensorRT engines can't be measured yet"):
        refuse_engine(Path(name))


def test_random_inputs_are_the_same_every_time_and_for_every_model():
    first, second = random_feed(attention(), "a", 2), random_feed(attention(channels=4), "b", 2)
    assert first["image"].shape == (2, 3, 8, 8)
    assert first["image"].dtype == np.float32
    assert (first["image"] == second["image"]).all()
    assert (random_feed(attention(), "a", 2, seed=1)["image"] != first["image"]).any()


def test_random_inputs_have_the_type_of_the_input_and_values_that_any_model_takes():
    text = """g (float16[2] half, double[2] wide, uint8[50, 50] bytes, int64[50] tokens, bool[50] mask, float scalar)
        => (float16[2] y) { y = Relu (half) }"""
    made = random_feed(parse(text), "g")
    assert {name: array.dtype.name for name, array in made.items()} == {
        "half": "float16",
        "wide": "float64",
        "bytes": "uint8",
        "tokens": "int64",
        "mask": "bool",
        "scalar": "float32",
    }
    assert set(made["tokens"]) == {0, 1}
    assert made["bytes"].max() > 200
    assert made["scalar"].shape == ()


def test_text_can_not_be_made_up():
    with pytest.raises(OnnxquantError, match=r"a\.onnx: input x .* give some with --data"):
        random_feed(parse("g (string[2] x) => (string[2] y) { y = Identity (x) }"), "a.onnx")


DYNAMIC = "g (float[N, C, H, W] x) => (float[N, C, H, W] y) { y = Relu (x) }"


def test_dynamic_axes_come_from_the_options_or_from_the_models_own_preprocessing():
    proto = parse(DYNAMIC)
    with pytest.raises(OnnxquantError, match=r"a\.onnx: input x float32 \(N, C, H, W\) .* --shape x=1x3x224x224"):
        random_feed(proto, "a.onnx", 2)
    assert random_feed(proto, "a.onnx", 2, {"x": [1, 3, 5, 7]})["x"].shape == (1, 3, 5, 7)
    metadata = '{"input_size": [6, 8], "crop_pct": 1, "interpolation": "box", "mean": [0, 0, 0], "std": [1, 1, 1]}'
    helper.set_model_props(proto, {"onnxquant.preprocessing": metadata})
    assert random_feed(proto, "a.onnx", 2)["x"].shape == (2, 3, 6, 8)
    assert random_feed(proto, "a.onnx", 2, {"x": [1, 3, 5, 7]})["x"].shape == (1, 3, 5, 7)


@pytest.mark.parametrize("given", [[2, 4, 1], [2, 5]])
def test_a_shape_that_does_not_fit_the_input_is_refused(given):
    with pytest.raises(OnnxquantError, match=r"--shape x=2x.*: doesn't fit input x float32 \(N, 4\) of a\.onnx"):
        random_feed(parse(RELU), "a.onnx", 1, {"x": given})


@pytest.mark.parametrize(("axis", "batch", "expected"), [("N", 3, 3), ("N", 1, 1), ("2", 5, 2), ("8", 1, 8)])
def test_data_is_cut_to_the_batch_that_is_asked_for_or_that_the_model_fixes(axis, batch, expected):
    proto = parse(RELU.replace("N", axis))
    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    made = data_feed(open_dataset(x, input_specs(proto), None), proto, batch)["x"]
    assert made.shape == (expected, 4)
    assert (made[: min(expected, 4)] == x[:expected]).all()


def test_too_few_samples_for_a_batch_are_an_error():
    proto = parse(RELU)
    with pytest.raises(OnnxquantError, match="has 3 samples, too few for --batch 4"):
        data_feed(open_dataset(np.ones((3, 4), np.float32), input_specs(proto), None), proto, 4)
