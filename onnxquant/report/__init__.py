"""The report: one self-contained HTML page about a rewrite.

    gather (`page_data`)  ->  Page  ->  report.html.jinja with report.css and report.js  ->  one file

Every name on the page comes from somebody's file. Jinja escapes all of them, control characters and marks that turn
text around are spelled out, no data is put into the script, and the page's own content security policy allows no other
script and no request.
"""

from __future__ import annotations

import base64
import hashlib
import math
import tempfile
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnxquant.errors import OnnxquantError

if TYPE_CHECKING:
    import onnx

    from onnxquant.calibration.samples import Dataset
    from onnxquant.pipeline import RewriteResult
    from onnxquant.report.page_data import Page, Progress


def check_report(path: Path, option: str) -> None:
    """Find out that a report can't be made or written before the work starts.

    Args:
        path: of the page.
        option: that gave it, for messages.

    Raises:
        OnnxquantError: jinja2 is missing, or `path` can't be written.
    """
    _jinja2(option)
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # ask the file system: permission bits don't tell all
            pass
    except OSError as error:
        raise OnnxquantError(f"{option} {path}: can't be written ({error.strerror or error})") from None


def render_report(
    original: onnx.ModelProto,
    result: RewriteResult,
    data: Dataset | None = None,
    *,
    name: str = "",
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> str:
    """The page of a rewrite, as HTML; arguments and errors are those of `onnxquant.report.page_data.gather`."""
    from onnxquant.report.page_data import gather

    return render(gather(original, result, data, name=name, batch_size=batch_size, progress=progress))


def render(page: Page) -> str:
    """Put a page's data into the template."""
    jinja2 = _jinja2("report")
    from markupsafe import Markup

    from onnxquant.report.page_data import samples

    files = resources.files(__name__)
    css, script = (Markup((files / name).read_text("utf-8")) for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"db": _db, "sig": _significant, "percent": _percent, "samples": samples}
    template = environment.from_string((files / "report.html.jinja").read_text("utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(page=page, css=css, script=script, script_digest=digest)


def _jinja2(option: str) -> ModuleType:
    try:
        import jinja2
    except ImportError:
        raise OnnxquantError(f"{option}: needs jinja2: pip install 'onnxquant[report]'") from None
    return jinja2


def _shown(value: Any) -> Any:
    """Text without characters that don't show, or that turn the text around them; everything else as it is."""
    if type(value) is str and not value.isprintable():  # markup is another type
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value)
    return value


def _db(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.1f}".replace("-", "−")


def _significant(value: float) -> str:
    return f"{value:.3g}".replace("-", "−") if math.isfinite(value) else "∞"


def _percent(value: float) -> str:
    return f"{value:.1%}"
