"""`python -m onnxquant.polygraphy data_loader`: where the scripts for polygraphy's options lie."""

from __future__ import annotations

import argparse
from pathlib import Path

SCRIPTS = {"data_loader": "--data-loader-script", "compare_outputs": "--compare-func-script"}


def main() -> None:
    """Print the path of a script."""
    uses = "; ".join(f"{name} for `polygraphy run {option}`" for name, option in SCRIPTS.items())
    parser = argparse.ArgumentParser("python -m onnxquant.polygraphy", description=f"Print a script's path: {uses}.")
    parser.add_argument("script", choices=list(SCRIPTS))
    print(Path(__file__).with_name(f"{parser.parse_args().script}.py"))


if __name__ == "__main__":
    main()
