"""`QuantizeOnnx`: a rewrite as a loader that goes between polygraphy's own."""

from __future__ import annotations

from typing import Any

from polygraphy import util
from polygraphy.backend.base import BaseLoader
from polygraphy.logger import G_LOGGER

from onnxquant.defaults import DEFAULT_RECIPE
from onnxquant.polygraphy.errors import as_polygraphy_errors


class QuantizeOnnx(BaseLoader):
    """Functor that quantizes an ONNX model.

    Args:
        model: ModelProto or path, or a callable that returns one of those (`OnnxFromPath`, say); never changed.
        recipe: name of a recipe, or path of a recipe's TOML file.
        calibration: what `onnxquant.rewrite` takes. None: ranges that hold for any input.
        options: any other argument of `onnxquant.rewrite`, ``target="tensorrt"`` say.
    """

    def __init__(self, model: Any, recipe: str = DEFAULT_RECIPE, calibration: Any = None, **options: Any) -> None:
        self._model = model
        self._recipe, self._calibration, self._options = recipe, calibration, options

    @util.check_called_by("__call__")  # type: ignore[untyped-decorator]
    def call_impl(self) -> Any:
        """Quantize the model.

        Returns:
            onnx.ModelProto: The rewritten model.

        Raises:
            PolygraphyException: bad input, or a result too far from the original; the message is onnxquant's.
        """
        from onnxquant.pipeline import rewrite

        model, _ = util.invoke_if_callable(self._model)
        with as_polygraphy_errors():
            result = rewrite(model, recipe=self._recipe, calibration=self._calibration, **self._options)
        report = result.report
        done = ", ".join(f"{count} x {what}" for what, count in report.quantized.items())
        G_LOGGER.info(f"onnxquant {self._recipe}: {done}; {report.bytes_before:,} -> {report.bytes_after:,} bytes")
        if judgement := report.judgement:
            G_LOGGER.info(f"onnxquant {self._recipe}: SQNR {judgement.sqnr_db:.1f} dB on {judgement.measured_on}")
        return result.model
