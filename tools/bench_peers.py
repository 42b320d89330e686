"""onnxquant beside other tools that quantize ONNX files to int8 weights and activations: cost and result.

    python tools/bench_peers.py model.onnx --calib images/
    python tools/bench_peers.py models/cifar10/mobilevit_xxs.onnx --calib cifar10.zip --calib-per-class :4500 \
        --held cifar10.zip --held-per-class 4500: --ours w8a8/onnxruntime --ours w8a8/tensorrt --peers onnxsim,nncf

Prints a Markdown table; the one in the README is this script's. Every tool gets the same preprocessed samples and a
virtual environment of its own under ``--work``, with the versions in `peers/quantize.py`; they take turns, a process a
run. A tool that can't be installed, fails, or writes a model that ONNX Runtime refuses is listed with what it said.

- time and memory: of the whole process. CPU time counts all threads, and other work on the machine disturbs it less.
- SQNR: of the outputs of optimised ONNX Runtime on the samples held back from calibration. Mean removed: what counts as
  signal is how the original's outputs differ from sample to sample, 10 log10(sum (r - mean of r over the samples)^2 /
  sum (q - r)^2) for outputs r of the original and q of the result; a pattern that all samples share would hide errors.
- speed-up: fp32 time over the result's, batch 1, ONNX Runtime's CPU provider (`onnxquant bench`).
- float weights: bytes of float tensors with two or more axes that are left in the file.
- TensorRT-RTX: whether it parses the result and builds an engine for compute capability 8.6 (``polygraphy convert``).
  What it builds against `onnxquant check` is marked: uint8 codes, for example, it reads as int8 without a word.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from peers.processes import Failed, environment, measured
from peers.quantize import PEERS
from peers.results import centred_sqnr_db, float_weight_bytes, outputs, tensorrt_rtx

from onnxquant.calibration.dataset import open_dataset, parse_slice, split_held, take
from onnxquant.calibration.samples import Dataset, input_specs
from onnxquant.defaults import DEFAULT_SAMPLES
from onnxquant.errors import OnnxquantError
from onnxquant.graph.model import read_proto
from onnxquant.measure.accuracy import evaluate
from onnxquant.measure.bench import Timing, bench
from onnxquant.measure.feeds import data_feed
from onnxquant.measure.metrics import sqnr_db
from onnxquant.preprocessing import Preprocessing, classes_from_metadata

QUANTIZE = Path(__file__).parent / "peers" / "quantize.py"
ONNXQUANT = [sys.executable, "-m", "onnxquant"]
COLUMNS = [
    "tool", "version", "time", "CPU time", "memory", "SQNR", "mean removed", "top-1", "speed-up", "file",
    "float weights", "TensorRT-RTX",
]  # fmt: skip


@dataclass
class Row:
    """A tool and what was measured of it."""

    name: str
    version: str
    command: list[str] = field(default_factory=list)
    runs: list[dict[str, float]] = field(default_factory=list)
    output: Path | None = None
    failure: str = ""
    touched: bool = False
    cells: dict[str, str] = field(default_factory=dict)


def quantize(row: Row, model: onnx.ModelProto, work: Path, timeout: float) -> None:
    """One run of a tool, in a folder of its own and on a copy of the model: some write beside or into their input."""
    folder = work / "runs" / re.sub(r"\W+", "-", row.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data, output = model.SerializeToString(), folder / "out.onnx"
    (folder / "model.onnx").write_bytes(data)
    try:
        row.runs.append(measured(row.command, folder, timeout))
        row.touched = (folder / "model.onnx").read_bytes() != data
        if not output.exists():
            raise Failed("ended without an error, and wrote nothing")
        row.output = output
    except Failed as error:
        row.failure = str(error)


def judge(
    row: Row, reference: list[np.ndarray], held_back: Dataset, labelled: Dataset | None, work: Path, timeout: float
) -> None:
    """Quality and TensorRT-RTX; what ONNX Runtime refuses counts as failed."""
    assert row.output is not None
    try:
        result = outputs(row.output, held_back)
        pairs = list(zip(reference, result, strict=True))
        if row.runs:
            row.cells["SQNR"] = f"{min(sqnr_db(r, q) for r, q in pairs):.1f} dB"
            row.cells["mean removed"] = f"{min(centred_sqnr_db(r, q) for r, q in pairs):.1f} dB"
        if labelled is not None:
            row.cells["top-1"] = f"{100 * evaluate(row.output, labelled).top1:.2f} %"
    except OnnxquantError as error:
        row.failure, row.output = str(error), None
        return
    row.cells["float weights"] = megabytes(float_weight_bytes(onnx.load(row.output)))
    row.cells["TensorRT-RTX"] = tensorrt_rtx(row.output, work, timeout)


def add_costs(row: Row, timing: Timing | None) -> None:
    """Medians over the runs; of the memory, the largest."""
    if row.runs:
        row.cells["time"] = f"{statistics.median(run['seconds'] for run in row.runs):.1f} s"
        row.cells["CPU time"] = f"{statistics.median(run['cpu_seconds'] for run in row.runs):.1f} s"
        row.cells["memory"] = megabytes(max(run["memory_bytes"] for run in row.runs))
    if timing:
        low, high = (1 / bound for bound in reversed(timing.ratio_interval))
        row.cells["speed-up"] = f"{1 / timing.ratio:.2f}" + (f" ({low:.2f}-{high:.2f})" if low < high else "")
        row.cells["file"] = megabytes(timing.file_bytes)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.0f} MB"


def print_table(rows: Sequence[Row]) -> None:
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        cells = {**row.cells, "tool": row.name, "version": row.version}
        if row.failure:
            said = row.failure.rpartition(" Error ")[2]  # where it was ONNX Runtime's, its own words come last
            cells["SQNR"] = f"fails: {said}".replace("|", "/")
        if row.touched:
            cells["tool"] += " (changes its input file)"
        print(f"| {' | '.join(cells.get(column, '') for column in COLUMNS)} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", required=True, help="calibration data; 32 of its samples are held back")
    parser.add_argument("--calib-per-class", type=parse_slice)
    parser.add_argument("--held", help="labelled data for top-1")
    parser.add_argument("--held-per-class", type=parse_slice)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)} [default: all]")
    parser.add_argument("--ours", action="append", metavar="RECIPE/TARGET", help="onnxquant's rows")
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="for environments and results")
    parser.add_argument("--no-venv", action="store_true", help="run the peers in this Python, as it is")
    parser.add_argument("--runs", type=int, default=3, help="of every tool")
    parser.add_argument("--rounds", type=int, default=50, help="of the latency measurement")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime in the latency measurement")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a run may take")
    args = parser.parse_args()
    if unknown := sorted(set(filter(None, args.peers.split(","))) - set(PEERS)):
        parser.error(f"--peers {unknown[0]}: is none of {', '.join(PEERS)}")
    return args


def save_samples(path: Path, data: Dataset) -> None:
    feeds = [sample.feeds for sample in data]
    arrays: dict[str, Any] = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    np.savez(path, **arrays)


def main() -> None:
    args = parse_arguments()
    work: Path = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    proto = read_proto(args.model)
    specs, metadata = input_specs(proto), {entry.key: entry.value for entry in proto.metadata_props}
    preprocessing = Preprocessing.from_metadata(metadata, str(args.model))
    classes = classes_from_metadata(metadata, str(args.model))
    # `onnxquant rewrite` splits the same file in the same way: it calibrates on what the others are given.
    both, calibration = work / "samples.npz", work / "calib.npz"
    save_samples(both, take(open_dataset(args.calib, specs, preprocessing, args.calib_per_class), 2 * DEFAULT_SAMPLES))
    calibrate_on, held_back = split_held(open_dataset(both, specs, None), DEFAULT_SAMPLES)
    save_samples(calibration, calibrate_on)
    labelled = open_dataset(args.held, specs, preprocessing, args.held_per_class, classes) if args.held else None

    rows = []
    for pair in args.ours or ["w8a8/onnxruntime", "w8a8/tensorrt"]:
        recipe, target = pair.rsplit("/", 1)
        command = [*ONNXQUANT, "rewrite", "model.onnx", "--calib", str(both), "-o", "out.onnx"]
        rows.append(Row(f"onnxquant {pair}", "", [*command, "--recipe", recipe, "--target", target]))
    for name in filter(None, args.peers.split(",")):
        rows.append(row := Row(name, PEERS[name].requirements[0]))
        print(f"preparing {name}", file=sys.stderr)
        try:
            python = sys.executable if args.no_venv else environment(PEERS[name], work)
            row.command = [python, str(QUANTIZE), name, "model.onnx", str(calibration), "out.onnx"]
        except Failed as error:
            row.failure = str(error)
    for run in range(args.runs):
        for row in (row for row in rows if not row.failure):
            print(f"run {run + 1}: {row.name}", file=sys.stderr)
            quantize(row, proto, work, args.timeout)
    rows.insert(0, Row("float32", "", output=args.model))
    reference = outputs(args.model, held_back)
    for row in (row for row in rows if row.output and not row.failure):
        print(f"judging {row.name}", file=sys.stderr)
        judge(row, reference, held_back, labelled, work, args.timeout)
    running = [row for row in rows if row.output and not row.failure]
    feed = data_feed(held_back, specs)
    paths = [row.output for row in running if row.output]
    timings = dict(zip(paths, bench(paths, [feed] * len(paths), rounds=args.rounds, threads=args.threads), strict=True))
    for row in rows:
        add_costs(row, timings.get(row.output) if row.output else None)
    print_table(rows)


if __name__ == "__main__":
    main()
