"""Files: those that come with the package, and those that must appear whole or not at all."""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from onnxquant.errors import OnnxquantError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["packaged_names", "packaged_toml", "tomllib", "write_bytes", "write_text"]


def packaged_names(package: str) -> list[str]:
    """Names of the TOML files in `package`, without their ending."""
    files = resources.files(package).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def packaged_toml(package: str, name: str) -> dict[str, Any]:
    """The content of ``name.toml`` in `package`."""
    return tomllib.loads((resources.files(package) / f"{name}.toml").read_text("utf-8"))


def write_text(path: Path, text: str, option: str) -> None:
    """Write a text file as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"), option)


def write_bytes(path: Path, data: bytes, option: str) -> None:
    """Write a file by way of a temporary one.

    Raises:
        OnnxquantError: `path`, given by `option`, can't be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxquant-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            temporary.write_bytes(data)
            temporary.replace(path)
    except OSError as error:
        raise OnnxquantError(f"{option} {path}: can't be written ({error.strerror or error})") from None
