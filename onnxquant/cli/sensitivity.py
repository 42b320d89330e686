"""`onnxquant sensitivity`: which tensors, or blocks, cost most when they are quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onnxquant.cli.options import BatchSize, Json, ModelPath, PerClass, Preprocess
from onnxquant.defaults import DEFAULT_BATCH_SIZE, DEFAULT_RECIPE, DEFAULT_SAMPLES, DEFAULT_TARGET

if TYPE_CHECKING:
    from onnxquant.measure.sensitivity import Cost, Sensitivity


def sensitivity_command(
    model: ModelPath,
    calib: Annotated[
        str,
        typer.Option(
            help="Calibration data: image folder or zip, .npz, .npy, polygraphy JSON or load_data() script.",
            show_default=False,
        ),
    ],
    recipe: Annotated[str, typer.Option(help="Recipe name, or path of a recipe's .toml file.")] = DEFAULT_RECIPE,
    target: Annotated[str, typer.Option(help="Runtime the plan is for.")] = DEFAULT_TARGET,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[PASS.]OPTION=VALUE", help="Change an option of passes."),
    ] = None,
    by: Annotated[Literal["tensor", "block"], typer.Option(help="What to quantize at a time.")] = "tensor",
    samples: Annotated[
        int, typer.Option(min=1, help="Samples to calibrate on, and others to compare on, at most.")
    ] = DEFAULT_SAMPLES,
    batch_size: BatchSize = DEFAULT_BATCH_SIZE,
    per_class: PerClass = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
) -> None:
    """Quantize one tensor or block at a time, and rank what each costs at the output."""
    from onnxquant.cli.options import open_data, print_json, progress_bar
    from onnxquant.graph.model import load
    from onnxquant.measure.sensitivity import sensitivity

    loaded = load(model)
    dataset = open_data(calib, loaded, per_class, preprocess, option="--calib")
    with progress_bar("measuring") as progress:
        result = sensitivity(
            loaded,
            dataset,
            recipe=recipe,
            target=target,
            overrides=overrides or (),
            by=by,
            samples=samples,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        document = {
            "model": str(model),
            "samples": result.samples,
            "held_back": result.held_back,
            "together": {"tensors": len(result.together.tensors), **_metrics(result.together)},
            "costs": [
                {
                    "tensors": list(cost.tensors),
                    "scope": cost.scope,
                    "kind": cost.kind,
                    "quantizer": cost.quantizer,
                    **_metrics(cost),
                    "share": cost.share,
                }
                for cost in result.costs
            ],
        }
        print_json(document)
    else:
        _print_table(result, by)


def _metrics(cost: Cost) -> dict[str, Any]:
    return {"sqnr_db": cost.sqnr_db, "top1_agreement": cost.top1_agreement}


def _print_table(result: Sensitivity, by: str) -> None:
    from rich.table import Table

    from onnxquant.cli.options import open_console, shown

    console = open_console()
    table = Table(box=None, pad_edge=False)
    for title in ([] if by == "block" else ["tensor"]) + ["block"]:
        table.add_column(title, overflow="fold")
    table.add_column("kind")
    table.add_column("quantizer")
    for title in ("SQNR dB", "top-1 agreement", "share"):
        table.add_column(title, justify="right")
    for cost in result.costs:
        scope = cost.scope or (cost.tensors[0] if by == "block" else "")
        names = [scope] if by == "block" else [cost.tensors[0], scope]
        table.add_row(
            *map(shown, names), cost.kind, cost.quantizer, f"{cost.sqnr_db:.2f}", _agreeing(cost), f"{cost.share:.1%}"
        )
    kind = "held-back samples" if result.held_back else "samples, which calibration saw too"
    console.print(f"{len(result.costs)} {by}s, each quantized alone, worst first; {result.samples} {kind}")
    console.print(table)
    together = result.together
    console.print(
        f"\nall {len(together.tensors)} tensors together: SQNR {together.sqnr_db:.2f} dB, "
        f"top-1 agreement {_agreeing(together)}"
    )


def _agreeing(cost: Cost) -> str:
    return "-" if cost.top1_agreement is None else f"{cost.top1_agreement:.2%}"
