"""The command line: one file a verb. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from onnxquant.cli.bench import bench_command
from onnxquant.cli.blocks import blocks_command
from onnxquant.cli.build import build_command
from onnxquant.cli.calibrate import calibrate_command
from onnxquant.cli.check import check_command
from onnxquant.cli.compare import compare_command
from onnxquant.cli.evaluate import evaluate_command
from onnxquant.cli.export import export_command
from onnxquant.cli.listing import passes_command, recipes_command, targets_command
from onnxquant.cli.report import report_command
from onnxquant.cli.rewrite import rewrite_command
from onnxquant.cli.sensitivity import sensitivity_command
from onnxquant.errors import OnnxquantError

EXIT_CODES = (
    "Exit codes: 0 done; 2 bad input or option, nothing written; "
    "3 the rewritten model missed its tolerance, nothing written; 1 a bug."
)

app = typer.Typer(
    help="Quantize CNN-Transformer hybrids: an ONNX file in, an ONNX file out that ONNX Runtime and TensorRT run.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from onnxquant import __version__

        typer.echo(f"onnxquant {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, help="Print the version.")] = False,
) -> None: ...


app.command("rewrite")(rewrite_command)
app.command("blocks")(blocks_command)
app.command("calibrate")(calibrate_command)
app.command("compare")(compare_command)
app.command("evaluate")(evaluate_command)
app.command("bench")(bench_command)
app.command("check")(check_command)
app.command("build")(build_command)
app.command("sensitivity")(sensitivity_command)
app.command("report")(report_command)
app.command("export")(export_command)
app.command("passes")(passes_command)
app.command("recipes")(recipes_command)
app.command("targets")(targets_command)


def main() -> None:
    """Entry point: errors that a user can meet are one line and an exit code."""
    try:
        sys.exit(app(standalone_mode=False))
    except OnnxquantError as error:
        print(f"onnxquant: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)  # `onnxquant ... | head` closed the pipe
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # A usage error of typer, whose own rendering takes five lines; typer 0.29 doesn't export its class.
        command = getattr(getattr(error, "ctx", None), "command_path", "onnxquant")
        message = error.format_message().rstrip(".").replace("\n", " ")
        if message:  # there is none where the help was shown
            print(f"onnxquant: error: {message}; see `{command} --help`", file=sys.stderr)
        sys.exit(2)
