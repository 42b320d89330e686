"""What takes a machine with an NVIDIA GPU, in one table: do the engines compute the same, and how fast are they?

    python tools/gpu_check.py model.onnx --calib images/

The model is rewritten with every recipe, and it and the results are converted to float16. Each file becomes a TensorRT
engine for the GPU here. The engines run on held-back samples, where their outputs are compared with ONNX Runtime's on
the CPU, for the same file and for the original; then they are timed in turns, on the first of these samples.

The table is printed on any machine: what can't be done there is "not run" in it, and a line below says why. Without a
GPU that it supports, TensorRT-RTX builds ahead of time for compute capability 8.6.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from onnxquant.passes.convert_to_float16 import ConvertToFloat16

from onnxquant import load, rewrite, save
from onnxquant.calibration.dataset import Dataset, batches, input_specs, split_held, take
from onnxquant.cli.options import check_outputs, open_data
from onnxquant.defaults import DEFAULT_SAMPLES
from onnxquant.deploy.build import build_engine
from onnxquant.deploy.tensorrt import MODULES, TensorRT, find_tensorrt, gpu_compute_capability
from onnxquant.deploy.versions import require_builder, target_of
from onnxquant.errors import OnnxquantError
from onnxquant.files import write_bytes
from onnxquant.graph.model import Model, read_proto
from onnxquant.measure.bench import bench
from onnxquant.measure.compare import compare, compare_saved
from onnxquant.measure.engines import run_engine
from onnxquant.measure.metrics import Agreement
from onnxquant.measure.weights import weight_bytes
from onnxquant.polygraphy.results import SavedOutputs
from onnxquant.recipes import load_recipe

AHEAD = "8.6"
RECIPES = ("efficientquant", "efficientquant-int8", "w8a8", "weights-only")
"""A search chooses other scales, and makes the same graphs."""
COLUMNS = (
    *("weights MB", "ONNX Runtime to fp32", "build s", "engine MB"),
    *("engine to ONNX Runtime", "engine to fp32", "latency ms", "load ms"),
)


class Check:
    """Measures variants of a model.

    Args:
        original: file of the float32 model.
        held: what to run.
        tensorrt: what builds; None where there is none that can.
        gpu: compute capability of the GPU that the engines run on; None where there is none that can.

    Attributes:
        rows: cells by column, by variant; a cell that is missing was not run.
        engines: files of those that ran, by variant.
    """

    def __init__(self, original: Path, held: Dataset, tensorrt: TensorRT | None, gpu: str | None) -> None:
        self._original, self._held, self._tensorrt, self._gpu = original, held, tensorrt, gpu
        self._specs = input_specs(read_proto(original))
        self._feeds = [batch.feeds for batch in batches(held, 1, self._specs)]
        self.rows: dict[str, dict[str, str]] = {}
        self.engines: dict[str, Path] = {}

    def measure(self, variant: str, path: Path, plan: Path) -> None:
        """Run the file `path` in ONNX Runtime, and its engine, which is written to `plan`."""
        row = self.rows[variant]
        row["weights MB"] = f"{weight_bytes(read_proto(path)) / 1e6:.1f}"
        row["ONNX Runtime to fp32"] = shown(compare(self._original, path, self._held, 1, per_layer=False).outputs)
        if self._tensorrt is None:
            return
        dynamic = [spec.name for spec in self._specs if not all(isinstance(axis, int) for axis in spec.shape)]
        engine = build_engine(
            path,
            compute_capabilities=[self._gpu or AHEAD],
            shapes={name: [self._feeds[0][name].shape] * 3 for name in dynamic},
            runtime="tensorrt-rtx" if self._tensorrt.is_rtx else "tensorrt",
        )
        write_bytes(plan, engine.plan, "--work")
        row["build s"] = f"{engine.parse_seconds + engine.build_seconds:.1f}"
        row["engine MB"] = f"{len(engine.plan) / 1e6:.1f}"
        if self._gpu is None:
            return
        outputs = SavedOutputs(str(plan), run_engine(plan, self._feeds))
        for column, reference in (("engine to ONNX Runtime", path), ("engine to fp32", self._original)):
            row[column] = shown(compare_saved(reference, outputs, self._held, per_layer=False).outputs)
        self.engines[variant] = plan

    def time(self) -> None:
        """Time the engines that ran, against each other."""
        timings = bench(list(self.engines.values()), [self._feeds[0]] * len(self.engines)) if self.engines else []
        for variant, timing in zip(self.engines, timings, strict=True):
            self.rows[variant]["latency ms"] = f"{timing.percentile(50) * 1e3:.3f}"
            self.rows[variant]["load ms"] = f"{timing.load_seconds * 1e3:.0f}"


def find_runtime(wanted: str | None) -> tuple[TensorRT | None, str | None, list[str]]:
    """TensorRT if it can build here, the GPU's compute capability if it can run engines too, and what is lacking."""
    try:
        require_builder(tensorrt := find_tensorrt(wanted))
    except OnnxquantError as error:
        return None, None, [f"No engine was built, and nothing was run on a GPU: {error}"]
    present, supported = gpu_compute_capability(), target_of(tensorrt).compute_capabilities
    if present and (not supported or present in supported):
        return tensorrt, present, []
    why = "there is no NVIDIA GPU here"
    if present:
        why = f"the one here has compute capability {present}, {tensorrt.name} runs on {', '.join(supported)} only"
    return tensorrt, None, [f"Nothing was run on a GPU: {why}; {tensorrt.name} built ahead of time for {AHEAD}"]


def to_float16(path: Path, calibration: Dataset | None, target: str) -> Model:
    """The model with what isn't quantized in float16."""
    model = load(path)
    ConvertToFloat16()(model.graph, calibration, target)
    return model


def shown(outputs: Mapping[str, Agreement]) -> str:
    """SQNR and top-1 agreement of the output that agrees least."""
    worst = min(outputs.values(), key=lambda agreement: agreement.sqnr_db)
    sqnr = "equal" if worst.sqnr_db == math.inf else f"{worst.sqnr_db:.1f} dB"
    return sqnr if worst.top1_agreement is None else f"{sqnr}, {worst.top1_agreement:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", help="calibration data; without it ranges are the widest there can be")
    parser.add_argument("--held", help="data to run, at most 32 samples of it [default: held back from --calib]")
    parser.add_argument("--runtime", choices=MODULES, help="[default: the first that is installed]")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="[default: %(default)s]")
    parser.add_argument("--work", type=Path, help="existing folder to keep the ONNX files and engines in")
    args = parser.parse_args()
    if not args.calib and not args.held:
        parser.error("there is no data to run: give --calib or --held")

    data = open_data(args.calib, args.model, option="--calib") if args.calib else None
    calibrating, held = split_held(data, DEFAULT_SAMPLES) if data is not None else (None, None)
    if args.held:
        held = take(open_data(args.held, args.model, option="--held"), DEFAULT_SAMPLES)
    if not held:
        parser.error(f"--calib {args.calib}: has no sample to hold back: give more, or --held")
    recipes = [recipe for recipe in args.recipes.split(",") if recipe]
    for recipe in recipes:
        load_recipe(recipe)
    tensorrt, gpu, problems = find_runtime(args.runtime)
    target = target_of(tensorrt).name if tensorrt else "tensorrt"
    check = Check(args.model, held, tensorrt, gpu)

    @contextmanager
    def noting(what: str) -> Iterator[None]:
        print(f"{what} ...", file=sys.stderr)
        try:
            yield
        except OnnxquantError as error:
            problems.append(f"{what}: {error}")

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        for recipe in (None, *recipes):
            single, half = (Path(recipe).stem, f"{Path(recipe).stem}-fp16") if recipe else ("fp32", "fp16")
            check.rows |= {single: {}, half: {}}
            output, made = folder / f"{single}.onnx", {}
            for written in (output, folder / f"{half}.onnx"):
                check_outputs({"--work": written}, {"the model": args.model})
            with noting(f"making {single} and {half}"):
                made = {single: output if recipe else args.model, half: folder / f"{half}.onnx"}
                if recipe is None:
                    save(to_float16(args.model, calibrating, target), made[half])
                for variant, float_type in ((single, "fp32"), (half, "fp16")) if recipe else ():
                    rewritten = rewrite(
                        args.model, recipe=recipe, calibration=data, target=target, float_type=float_type,
                        min_sqnr=-math.inf,
                    )  # fmt: skip
                    save(rewritten.model, made[variant])
            for variant, path in made.items():
                with noting(f"measuring {variant}"):
                    check.measure(variant, path, folder / f"{variant}.plan")
        with noting("timing"):
            check.time()

    where = f"{tensorrt.name} for compute capability {gpu or AHEAD}" if tensorrt else "no TensorRT"
    print(f"{args.model.name}, {where}, batch 1; SQNR and top-1 agreement on {len(held)} samples\n")
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for variant, row in check.rows.items():
        print(f"| {variant} | {' | '.join(row.get(column, 'not run') for column in COLUMNS)} |")
    if problems:
        print("", *problems, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except OnnxquantError as error:
        sys.exit(f"error: {error}")
