"""What `onnxquant rewrite` prints of a result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxquant.gate import Judgement
    from onnxquant.measure.latency import Latency
    from onnxquant.pipeline import Report


def as_json(report: Report, output: Path) -> dict[str, object]:
    """The document that --json prints."""
    judgement = report.judgement
    accuracy, latency = (judgement.accuracy, judgement.latency) if judgement else (None, None)
    return {
        "output": str(output),
        "blocks": report.blocks,
        "quantized": report.quantized,
        "exempt": report.exempt,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "agreement": {name: agreement.as_dict() for name, agreement in judgement.agreement.items()}
        if judgement
        else None,
        "samples": judgement.samples if judgement else 0,
        "held_back": judgement.held_back if judgement else True,
        "top1": [each.top1 for each in accuracy] if accuracy else None,
        "seconds_per_sample": [latency.original, latency.rewritten] if latency else None,
        "passes": [
            {"name": run.name, "seconds": round(run.seconds, 4), "notes": list(run.result.notes)} for run in report.runs
        ],
        "seconds": round(report.seconds, 4),
    }


def print_table(report: Report, written: str, stderr: bool) -> None:
    """The table that people read.

    Args:
        report: of the rewrite.
        written: where the model went.
        stderr: whether stdout carries the model.
    """
    from rich.table import Table

    from onnxquant.cli.options import open_console, shown

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    for label, text in _rows(report):
        table.add_row(shown(label), shown(text))
    table.add_row("written", f"{shown(written)} in {report.seconds:.1f} s")
    open_console(stderr=stderr).print(table)


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    if report.blocks:
        yield "blocks", ", ".join(f"{count} {kind}" for kind, count in report.blocks.items())
    for label, count in report.quantized.items():
        yield "quantized", f"{count} x {label}"
    for tensor, why in report.exempt.items():
        yield "left in float", f"{tensor}: {why}"
    saved = 1 - report.bytes_after / max(report.bytes_before, 1)
    change = f"{abs(saved):.0%} {'smaller' if saved >= 0 else 'larger'}"
    yield "size", f"{report.bytes_before:,} -> {report.bytes_after:,} bytes ({change})"
    if report.judgement:
        yield from _judged(report.judgement)
    else:
        yield "output", "agreement not measured: no data (give some with --calib)"
    for run in report.runs:
        yield "pass", f"{run.seconds * 1e3:7.0f} ms  {run.name}: {'; '.join(run.result.notes)}"


def _judged(judgement: Judgement) -> Iterator[tuple[str, str]]:
    for name, agreement in judgement.agreement.items():
        top1 = agreement.top1_agreement
        same = "" if top1 is None else f", top-1 agreement {top1:.1%}"
        measured = f"SQNR {agreement.sqnr_db:.1f} dB, cosine {agreement.cosine:.5f}{same}"
        yield f"output {name}", f"{measured} on {judgement.measured_on}"
    if judgement.accuracy:
        before, after = judgement.accuracy
        yield "top-1", f"{before.top1:.2%} -> {after.top1:.2%} on {before.samples} samples beside those that calibrate"
    if judgement.latency:
        yield "latency", _compared(judgement.latency)


def _compared(latency: Latency) -> str:
    times = f"{latency.original * 1e3:.1f} -> {latency.rewritten * 1e3:.1f} ms for one sample on one thread"
    said = f"{times}, {latency.ratio:.2f} of the original's"
    if latency.ratio > 1:
        said += "; slower: --min-speedup 1 leaves layers that don't pay in float, --recipe weights-only all activations"
    return said
