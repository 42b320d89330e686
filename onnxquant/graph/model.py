"""Load and save: an ONNX file, ModelProto or graphsurgeon graph in, a checked file out.

onnx-graphsurgeon drops every ``metadata_props`` on import, and with them the preprocessing a file carries and the
dynamo exporter's module scopes. A `Model` keeps them beside the graph, by node name, and puts them back on export.
"""

from __future__ import annotations

import ast
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from google.protobuf.message import DecodeError

from onnxquant.errors import OnnxquantError, first_line
from onnxquant.graph.edit import UniqueNames

MINIMUM_OPSET = 13
"""Per-channel QuantizeLinear and DequantizeLinear exist since opset 13."""

MINIMUM_OPSET_FLOAT16 = 19
"""Since opset 19 the scale of DequantizeLinear, and so its output, may be float16."""

NUMPY_TYPES = {"float": "float32", "float16": "float16", "double": "float64", "bool": "bool"} | {
    name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
"""ONNX Runtime's names of the tensor types that numpy has."""

PROTOBUF_LIMIT = 2 * 1024**3 - 64 * 1024**2
"""Bytes of weights above which a file needs external data (protobuf's 2 GiB, with room for the graph)."""

Source: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | gs.Graph | Model"


@dataclass
class Model:
    """A graph with what graphsurgeon would lose.

    Attributes:
        graph: the graph that passes read and edit. Every node has a name of its own.
        metadata: the file's metadata_props.
        node_metadata: metadata_props of every node that has some, by node name.
        name: what messages call this model: its path, or "model".
        size_bytes: the model as it was read, external data included.
        header: a ModelProto without nodes, for the version, domain and descriptions that graphsurgeon has no place for.
    """

    graph: gs.Graph
    metadata: dict[str, str] = field(default_factory=dict)
    node_metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    name: str = "model"
    size_bytes: int = 0
    header: onnx.ModelProto = field(default_factory=onnx.ModelProto)

    def scope(self, node: gs.Node) -> str:
        """The module `node` came from, as ``stages.2.1.conv``; "" where the exporter left no trace of it.

        TorchScript writes it into the node's name (``/stages/stages.2/stages.2.1/conv/Conv``), dynamo into metadata.
        """
        scopes = self.node_metadata.get(node.name, {}).get("pkg.torch.onnx.name_scopes")
        if scopes:
            try:
                names = ast.literal_eval(scopes)  # never eval: the text comes from a stranger's file
                return str(names[-2]) if isinstance(names, list) and len(names) > 1 else ""
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return ""
        parts = node.name.split("/")
        if len(parts) < 3 or parts[0]:
            return ""
        scope: list[str] = []
        # "stages", "stages.2", "stages.2.1", "conv": a part that repeats its parent extends it.
        for part in parts[1:-1]:
            if scope and part.startswith(f"{scope[-1]}."):
                scope.pop()
            scope.append(part)
        return ".".join(scope)

    def to_proto(self) -> onnx.ModelProto:
        """The graph as a ModelProto, metadata restored for every node that kept its name."""
        model: onnx.ModelProto = gs.export_onnx(self.graph)
        onnx.helper.set_model_props(model, self.metadata)
        model.model_version, model.domain = self.header.model_version, self.header.domain
        model.doc_string = self.header.doc_string
        model.graph.metadata_props.extend(self.header.graph.metadata_props)
        for node in model.graph.node:
            for key, value in self.node_metadata.get(node.name, {}).items():
                node.metadata_props.add(key=key, value=value)
        return model


def load(source: Source, name: str | None = None) -> Model:
    """Read a model for rewriting; the source itself is never changed. A `Model` is returned as it is.

    Opsets below 13 (19 for float16 models) are converted up, nodes get unique names, shapes are inferred.

    Args:
        source: path of an ONNX file (external data beside it is read too), a ModelProto, a graphsurgeon graph or a
            `Model`.
        name: what messages call a model that comes from no file; by default the graph's own name.

    Raises:
        OnnxquantError: the file is missing, truncated, not ONNX, invalid, lacks its external data or has an opset that
            this version of the onnx package doesn't know.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, gs.Graph):
        proto, name = gs.export_onnx(source.copy()), name or source.name or "model"
    elif isinstance(source, onnx.ModelProto):
        proto, name = source, name or source.graph.name or "model"
    else:
        proto, name = read_proto(source), str(source)
    size = proto.ByteSize()
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    if copied.graph.sparse_initializer:
        raise OnnxquantError(
            f"{name}: has sparse initializers, which onnxquant doesn't read; export it with dense ones"
        )
    proto = check(_raise_ir_version(_convert_opset(copied, name)), name)
    graph = gs.import_onnx(proto)
    name_nodes(graph)
    node_metadata = {
        node.name: {prop.key: prop.value for prop in original.metadata_props}
        for node, original in zip(graph.nodes, proto.graph.node, strict=True)
        if original.metadata_props
    }
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    header = onnx.ModelProto(model_version=proto.model_version, domain=proto.domain, doc_string=proto.doc_string)
    header.graph.metadata_props.extend(proto.graph.metadata_props)
    return Model(graph, metadata, node_metadata, name, size, header)


def read_proto(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """An ONNX file as it is, with its external data.

    Raises:
        OnnxquantError: the file can't be read as ONNX.
    """
    path = Path(path)
    if not os.path.exists(path):  # pathlib's exists raises for a name that is too long, or a folder that is closed
        raise OnnxquantError(f"{path}: no such file")
    if path.is_dir():
        raise OnnxquantError(f"{path}: is a folder; give the .onnx file itself")
    return _read(path, str(path), path.parent)


def read_stream(stream: BinaryIO, name: str) -> onnx.ModelProto:
    """An ONNX file that comes through a pipe; external data, if it has any, is looked for in the working directory.

    Args:
        stream: read to its end.
        name: what messages call it.

    Raises:
        OnnxquantError: it can't be read as ONNX.
    """
    return _read(stream, name, Path())


def _read(source: Path | BinaryIO, name: str, folder: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(source, load_external_data=False)
    except DecodeError:
        raise OnnxquantError(f"{name}: not an ONNX file, or a truncated one; export or copy it again") from None
    except OSError as error:
        raise OnnxquantError(f"{name}: can't be read ({error.strerror or error})") from None
    if not model.graph.node and not model.opset_import:
        raise OnnxquantError(f"{name}: not an ONNX file (it holds no graph); export it again")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise OnnxquantError(
            f"{name}: its external data can't be read ({first_line(error)}); put the data file beside the .onnx file, "
            "under the name it was exported with"
        ) from None
    return model


def save(model: Model | onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Check a model and write it; the file appears whole or not at all.

    The graph goes through onnx.checker with full shape inference, and ONNX Runtime runs it once on zeros (if only the
    batch size is dynamic), before anything is written. Weights above 2 GiB go to ``<path>.data``.

    Raises:
        OnnxquantError: the model is invalid, ONNX Runtime refuses it, or `path` can't be written.
    """
    path = Path(path)
    if os.path.exists(path) and not path.is_file():
        raise OnnxquantError(f"{path}: can't be written (not a regular file); give another path with -o")
    proto = model.to_proto() if isinstance(model, Model) else model
    proto = check(proto, str(path))
    external = proto.ByteSize() > PROTOBUF_LIMIT
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxquant-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            data = f"{path.name}.data"
            if external:
                outside = onnx.ModelProto()
                outside.CopyFrom(proto)  # onnx.save moves the weights out of the proto it is given
                onnx.save(outside, temporary, save_as_external_data=True, location=data)
            else:
                onnx.save(proto, temporary)
            try:
                _run_once(ort.InferenceSession(temporary, quiet_session_options(), providers=["CPUExecutionProvider"]))
            except Exception as error:  # ONNX Runtime's own exceptions have no common base
                raise OnnxquantError(
                    f"{path}: not written, ONNX Runtime refuses the graph: {first_line(error)}"
                ) from None
            if external:
                (Path(folder) / data).replace(path.parent / data)
            temporary.replace(path)
    except OSError as error:
        raise OnnxquantError(
            f"{path}: can't be written ({error.strerror or error}); give another path with -o"
        ) from None


def save_stream(model: Model | onnx.ModelProto, stream: BinaryIO, name: str) -> None:
    """Check a model as `save` does and write its bytes to a pipe; nothing is written of one that fails.

    Args:
        model: the model.
        stream: what to write to.
        name: what messages call it.

    Raises:
        OnnxquantError: as `save`; also where the weights need a file of their own.
    """
    proto = model.to_proto() if isinstance(model, Model) else model
    if proto.ByteSize() > PROTOBUF_LIMIT:
        raise OnnxquantError(f"{name}: the weights take more than 2 GiB and need a file of their own; give a path")
    with tempfile.TemporaryDirectory(prefix="onnxquant-") as folder:
        path = Path(folder) / "model.onnx"
        save(proto, path)
        with path.open("rb") as file:
            shutil.copyfileobj(file, stream)
    stream.flush()


def _run_once(session: ort.InferenceSession) -> None:
    """Run on zeros; not at all where sizes besides the batch's are unknown."""
    feeds = {}
    for value in session.get_inputs():
        if not value.type.startswith("tensor(") or not all(isinstance(size, int) for size in value.shape[1:]):
            return
        dtype = NUMPY_TYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        if dtype is None:
            return
        batch = [size if isinstance(size, int) else 1 for size in value.shape[:1]]
        feeds[value.name] = np.zeros([*batch, *value.shape[1:]], dtype)
    session.run(None, feeds)


def quiet_session_options() -> ort.SessionOptions:
    """Session options for running beside other sessions: only errors are logged, threads don't spin while they wait."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def check(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`proto` with every shape inferred, once onnx.checker has passed it."""
    try:
        if proto.ByteSize() > PROTOBUF_LIMIT:
            return proto  # the checker and shape inference serialise the model, which is impossible at this size
        onnx.checker.check_model(proto)
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
        raise OnnxquantError(f"{name}: not a valid ONNX graph: {first_line(error)}") from None


def _convert_opset(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise OnnxquantError(f"{name}: opset {opset} is newer than this onnx package knows ({newest}); upgrade onnx")
    minimum = MINIMUM_OPSET_FLOAT16 if _holds_float16(proto.graph) else MINIMUM_OPSET
    if opset >= minimum:
        return proto
    try:
        converted = onnx.version_converter.convert_version(proto, minimum)
        onnx.helper.set_model_props(converted, {prop.key: prop.value for prop in proto.metadata_props})
        return converted
    except Exception as error:  # the converter raises whatever its C++ adapters throw
        raise OnnxquantError(
            f"{name}: opset {opset} can't be converted to {minimum} ({first_line(error)}); "
            "export it again with opset 17 or later"
        ) from None


def _holds_float16(graph: onnx.GraphProto) -> bool:
    constants = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    types = [tensor.data_type for tensor in (*graph.initializer, *constants)]
    types += [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    return onnx.TensorProto.FLOAT16 in types


def _raise_ir_version(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Functions need IR version 8; below 4, initializers would have to be inputs."""
    opsets = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx", "ai.onnx.ml")]
    proto.ir_version = max(proto.ir_version, 8, onnx.helper.find_min_ir_version_for(opsets))
    return proto


def name_nodes(graph: gs.Graph) -> None:
    """Give every node of the main graph a name of its own: plans, metadata and messages refer to nodes by name."""
    unique = UniqueNames(node.name for node in graph.nodes)
    seen: set[str] = set()
    for position, node in enumerate(graph.nodes):
        if not node.name or node.name in seen:
            node.name = unique(node.name or f"{node.op}_{position}")
        seen.add(node.name)


def infer_types(graph: gs.Graph) -> None:
    """Fill in the types and shapes that tensors of the graph lack, where shape inference knows them."""
    inferred = onnx.shape_inference.infer_shapes(gs.export_onnx(graph), data_prop=True)
    known = gs.import_onnx(inferred).tensors()
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Variable) and name in known:
            tensor.dtype = tensor.dtype or known[name].dtype
            tensor.shape = tensor.shape or known[name].shape
