"""`onnxquant check`: what a runtime would refuse in a model, before the runtime sees it."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxquant.cli.options import Json, ModelPath


def check_command(
    model: ModelPath,
    target: Annotated[str, typer.Option(help="Runtime; see `onnxquant targets`.", show_default=False)],
    compute_capability: Annotated[
        str | None,
        typer.Option(
            metavar="MAJOR.MINOR", help="Of the GPU, as 8.6. Without it, what depends on the GPU is left out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a model against a target, and name every node that it would refuse; exit code 2 if there is one."""
    from dataclasses import asdict

    from onnxquant.cli.options import open_console, print_json, shown
    from onnxquant.errors import OnnxquantError
    from onnxquant.graph.model import check, read_proto
    from onnxquant.targets import load_target
    from onnxquant.targets.check import check_target, summary

    runtime = load_target(target)
    refusals = check_target(check(read_proto(model), str(model)), runtime, compute_capability)
    if as_json:
        entries = [asdict(refusal) for refusal in refusals]
        print_json(
            {
                "model": str(model),
                "target": target,
                "compute_capability": compute_capability,
                "accepted": not refusals,
                "refusals": entries,
            }
        )
    else:
        console = open_console()
        for refusal in refusals:
            console.print(f"[bold]{shown(refusal.node or 'model')}[/bold]: {shown(refusal.message)} ({refusal.rule})")
        if not refusals:
            console.print(f"{shown(str(model))}: {target} accepts it")
    if refusals:
        raise OnnxquantError(summary(refusals, runtime, str(model)))
