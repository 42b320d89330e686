"""onnxquant in your own pipeline: a pass as a stage among graphsurgeon edits, and a rewrite as a polygraphy loader.

    python tools/examples/graphsurgeon_pipeline.py model.onnx calib.npz build

writes ``build/stage.onnx`` and ``build/loader.onnx``. The loader needs polygraphy: pip install 'onnxquant[polygraphy]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnxquant.passes.quantize_conv_weights import QuantizeConvWeights

import onnxquant
from onnxquant.pipeline import open_samples


def rename_outputs(graph: gs.Graph) -> gs.Graph:
    """An edit of your own, before onnxquant's."""
    for number, output in enumerate(graph.outputs):
        output.name = f"scores_{number}"
    return graph


def append_softmax(graph: gs.Graph) -> gs.Graph:
    """An edit of your own, after onnxquant's: probabilities instead of logits."""
    (logits,) = graph.outputs
    probabilities = gs.Variable("probabilities", np.float32, logits.shape)
    graph.nodes.append(gs.Node("Softmax", "probabilities", {"axis": -1}, [logits], [probabilities]))
    graph.outputs = [probabilities]
    return graph


def with_a_stage(model: Path, calibration: Path, output: Path) -> None:
    """A pass takes a graph and gives it back, as every stage here does."""
    # graphsurgeon drops a file's metadata, where it may say how images become the input: open the data before.
    samples = open_samples(onnxquant.load(model), calibration)
    graph = gs.import_onnx(onnx.load(model))
    graph = rename_outputs(graph)
    graph = QuantizeConvWeights(bits=8)(graph, calibration=samples, target="tensorrt")
    graph = append_softmax(graph)
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), output)


def with_a_loader(model: Path, calibration: Path, output: Path) -> None:
    """A whole recipe, as a loader between polygraphy's own; nothing happens before the last one is called."""
    from polygraphy.backend.onnx import OnnxFromPath, SaveOnnx

    from onnxquant.polygraphy import QuantizeOnnx

    quantize = QuantizeOnnx(OnnxFromPath(str(model)), "efficientquant", calibration, target="tensorrt")
    SaveOnnx(quantize, str(output))()


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with_a_stage(arguments.model, arguments.calibration, arguments.folder / "stage.onnx")
    with_a_loader(arguments.model, arguments.calibration, arguments.folder / "loader.onnx")


if __name__ == "__main__":
    main()
