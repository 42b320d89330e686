"""What a runtime refuses in graphs of any kind: operators, types, names. One function a rule.

Rules for quantized graphs are in `onnxquant.targets.quantization_rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import onnx
import onnxruntime as ort

from onnxquant.errors import first_line
from onnxquant.graph.model import PROTOBUF_LIMIT, quiet_session_options
from onnxquant.targets import RefusedOperators, as_version
from onnxquant.targets.inline import subgraphs, walk
from onnxquant.targets.view import Operator, View

Finding: TypeAlias = tuple[str, str, str]
"""(node, tensor, message): the message says what is wrong and what to do. No node or tensor is ""."""


def opset(view: View) -> Iterator[Finding]:
    """The opset is one that the parser knows."""
    imported = {entry.domain: entry.version for entry in view.model.opset_import}
    version, limits = imported.get("", imported.get("ai.onnx", 0)), view.target.opsets
    if limits and not limits[0] <= version <= limits[1]:
        remedy = f"opset {limits[1]} or below" if version > limits[1] else f"opset {max(limits[0], 13)} or above"
        known = f"{view.target.name} takes {limits[0]} to {limits[1]}"
        yield "", "", f"the model has opset {version}, and {known}; export it with {remedy}"


def operators(view: View) -> Iterator[Finding]:
    """No operator is one that the target refuses, always or for its input's type and the compute capability."""
    for node in view.operators:
        if refused := refusal_of(view, node):
            dtype = f" on {refused.dtype}" if refused.dtype else ""
            rank = f" of {refused.rank} dimensions" if refused.rank else ""
            where = f" below compute capability {refused.below}" if refused.below else ""
            yield node.name, node.output, f"{node.op}{dtype}{rank} is not supported{where}; {refused.remedy}"


def refusal_of(view: View, node: Operator) -> RefusedOperators | None:
    """The target's entry that a node's operator falls under."""
    shape = node.scope.shape(node.input(0))
    rank = None if shape is None else len(shape)
    for refused in view.target.refused:
        old = refused.below is None or (view.capability is not None and view.capability < as_version(refused.below))
        fits = refused.dtype in (None, node.dtype(0)) and refused.rank in (None, rank)
        if node.op in refused.operators and old and fits and not is_custom(view, node):
            return refused
    return None


def is_custom(view: View, node: Operator) -> bool:
    """Whether the target has a kernel of its own for a node that isn't a standard operator."""
    names = (node.op, f"{node.proto.domain}.{node.op}")
    return any(fnmatchcase(name, pattern) for pattern in view.target.custom_operators for name in names)


def attention_inputs(view: View) -> Iterator[Finding]:
    """No attention reads one tensor as query and as key: the builder crashes and takes the process along."""
    for node in view.operators:
        if node.op in ("Attention", "MultiHeadAttention") and _origin(node, 0) == _origin(node, 1):
            what = f"{node.op} reads {node.input(0)} as query and as key, which crashes the builder"
            yield node.name, node.input(0), f"{what}; write it with MatMul and Softmax, as opsets below 23 do"


def _origin(node: Operator, position: int) -> str:
    """The tensor that an input is a copy of."""
    name, before = node.input(position), node.producer(position)
    while before is not None and before.op == "Identity":
        name, before = before.input(0), before.producer(0)
    return name


def custom_operators(view: View) -> Iterator[Finding]:
    """Every operator outside the standard has a body: a function, which the target takes."""
    for node in view.operators:
        if node.proto.domain not in ("", "ai.onnx") and not is_custom(view, node):
            what = f"{node.proto.domain}.{node.op} is neither a standard operator nor a function of this file"
            yield node.name, node.output, f"{what}; write it with standard operators, or add its function"
    if not view.target.functions:
        functions = {(function.domain, function.name) for function in view.model.functions}
        for call in walk(view.model.graph.node):
            if (call.domain, call.op_type) in functions:
                what = f"{call.op_type} is a function, which {view.target.name} doesn't know"
                remedy = f"inline it, as `onnxquant rewrite --target {view.target.name}` does"
                yield call.name, call.output[0], f"{what}; {remedy}"


def dtypes(view: View) -> Iterator[Finding]:
    """Every tensor has a type that the target knows."""
    known = {"", *view.target.dtypes, *view.target.boundary_dtypes}
    readers = {name: node for node in reversed(view.operators) for name in node.inputs}
    quantized = {name for node in view.operators if node.quantizes for name in node.inputs}  # the rule `codes`'s
    for name in dict.fromkeys((*view.main.types, *view.main.constants)):
        dtype = view.main.dtype(name)
        if dtype not in known and name not in view.main.producers and name not in quantized:
            reader = readers[name].name if name in readers else ""
            yield reader, name, f"{name} is {dtype}, which {view.target.name} doesn't take; {_remedy(dtype)}"
    for node in view.operators:
        for name in () if node.quantizes else node.proto.output:
            dtype = node.scope.dtype(name)
            if dtype not in known:
                what = f"{node.op} makes {dtype}, which {view.target.name} doesn't take"
                yield node.name, name, f"{what}; {_remedy(dtype)}"


def boundary_dtypes(view: View) -> Iterator[Finding]:
    """Types that only inputs, outputs and constants may have don't appear in between."""
    limited = view.target.boundary_dtypes
    folded: set[tuple[int, str]] = set()  # what is made of constants keeps such a type
    for node in view.operators if limited else ():
        sources = [name for name in node.inputs if name and node.scope.dtype(name) in limited]
        constant = [node.scope.constant(name) or (id(node.scope), name) in folded for name in sources]
        if node.op == "Constant" or refusal_of(view, node) or (sources and all(constant)):
            folded |= {(id(node.scope), name) for name in node.proto.output}
            continue
        for name in () if node.quantizes else node.proto.output:
            dtype = node.scope.dtype(name)
            if dtype in limited and name not in node.scope.boundary:
                what = f"{node.op} makes {dtype}, which {view.target.name} takes only at inputs and outputs"
                yield node.name, name, f"{what}; {_remedy(dtype)}"


def _remedy(dtype: str) -> str:
    return "use int32, or int8 for codes" if "int" in dtype else "use float or float16"


def layer_names(view: View) -> Iterator[Finding]:
    """No layer before a QuantizeLinear or DequantizeLinear has its name: the parser can't rename the second.

    Layers are named by node, and by output where a node has no name. Those of a function keep their names in every
    call.
    """
    functions = {(function.domain, function.name): function for function in view.model.functions}
    seen: set[str] = set()
    for node in _in_parsing_order(view.model.graph.node, functions):
        name = node.name or f"node_of_{node.output[0]}"
        if name in seen and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            remedy = "give every node a name of its own, and inline functions with this operator that are called twice"
            yield node.name or node.output[0], node.output[0], f"two layers are called {name}; {remedy}"
        seen.add(name)


def _in_parsing_order(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[tuple[str, str], onnx.FunctionProto]
) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        for graph in subgraphs(node):
            yield from _in_parsing_order(graph.node, functions)
        function = functions.get((node.domain, node.op_type))
        if function is None:
            yield node
        else:
            yield from _in_parsing_order(function.node, functions)


def session(view: View) -> Iterator[Finding]:
    """ONNX Runtime itself loads the model, where the target includes it."""
    if not view.target.onnxruntime or view.model.ByteSize() > PROTOBUF_LIMIT:
        return
    options = quiet_session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(view.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        yield "", "", f"ONNX Runtime refuses the model: {first_line(error)}; change what it names"


def compute_capability(view: View) -> Iterator[Finding]:
    """Every type is one that the GPU has."""
    needs = view.target.minimum_compute_capability
    lacking = {dtype for dtype, least in needs.items() if view.capability and view.capability < as_version(least)}
    reported: set[tuple[int, str]] = set()
    for node in view.operators if lacking else ():
        for name in (*node.inputs, *node.proto.output):
            dtype = node.scope.dtype(name) if name else ""
            if dtype in lacking and (id(node.scope), name) not in reported:
                reported.add((id(node.scope), name))
                least = needs[dtype]
                remedy = f"build for compute capability {least} or later, or use {_instead(dtype)}"
                yield node.name, name, f"{name} is {dtype}, which this GPU has no instructions for; {remedy}"


def _instead(dtype: str) -> str:
    return "float16" if dtype == "bfloat16" else "int8"
