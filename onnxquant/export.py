"""timm model -> one self-contained float ONNX file that carries its preprocessing."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import logging
import os
import textwrap
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import onnx

from onnxquant.calibration.samples import input_specs
from onnxquant.errors import OnnxquantError, first_line
from onnxquant.files import write_bytes
from onnxquant.graph.model import read_proto, save
from onnxquant.preprocessing import CLASSES_KEY, METADATA_KEY, Preprocessing
from onnxquant.zoo import load_zoo

Exporter = Literal["torchscript", "dynamo"]
Batch = Literal["dynamic"] | int

DEFAULT_OPSET: dict[Exporter, int] = {"torchscript": 17, "dynamo": 20}
STACK_TRACE = "pkg.torch.onnx.stack_trace"


def export(
    arch: str,
    output: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    exporter: Exporter = "torchscript",
    batch: Batch = "dynamic",
    seed: int | None = None,
    opset: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Path:
    """Write `arch`, a model of the zoo or of timm, as float ONNX to `output` and return that path.

    The graph has one input ``input``, float32 (N, 3, H, W), and one output ``logits``, float32 (N, classes); N is
    `batch`, or a free dimension named ``batch``. The weights come from `checkpoint` (a file of `tools/train.py`, which
    also sets size and classes), else from `seed` (random), else from timm's pretrained ones on the Hugging Face hub.
    For a model of the zoo that timm doesn't have, `checkpoint` is the user's own ONNX file of it, which is given its
    preprocessing and computes the same; the other arguments play no part.
    The same arguments give the same bytes. `opset` defaults to 17 (torchscript) or 20 (dynamo).

    The model's metadata_props hold ``onnxquant.preprocessing`` (JSON: input_size, crop_pct, crop_mode, interpolation,
    mean, std), ``onnxquant.classes`` (JSON list of names, if known) and ``onnxquant.source``.

    `cache` is a folder that keeps what was exported: the same arguments, with the same versions of torch, timm and
    onnxquant, are exported once and copied from there afterwards.

    Raises OnnxquantError: torch or timm missing, unknown `arch`, unusable checkpoint, weights out of reach, or the
    exporter cannot convert the model.
    """
    output = Path(output)
    if exporter not in DEFAULT_OPSET:
        raise OnnxquantError(f"exporter {exporter!r} is unknown: use torchscript or dynamo")
    if batch != "dynamic" and (not isinstance(batch, int) or batch < 1):
        raise OnnxquantError(f"batch {batch!r} is neither 'dynamic' nor a positive number")
    if checkpoint is not None and seed is not None:
        raise OnnxquantError("a checkpoint and a seed exclude each other: give --checkpoint or --seed")
    if not output.parent.is_dir():
        raise OnnxquantError(f"{output}: the folder {output.parent} does not exist: create it or choose another output")
    model = load_zoo().get(arch)
    if model is not None and model.timm is None:
        save(_own_file(arch, model.preprocessing, checkpoint, output), output)
        return output
    arch = arch if model is None or model.timm is None else model.timm
    kept = None
    if cache is not None and (key := _cache_key(arch, checkpoint, exporter, batch, seed, opset)):
        kept = Path(cache) / f"{arch}-{exporter}-{key}.onnx"
        if kept.is_file():
            write_bytes(output, kept.read_bytes(), "-o")
            return output
    content = _export(arch, checkpoint, exporter, batch, seed, opset).SerializeToString(deterministic=True)
    write_bytes(output, content, "-o")
    if kept is not None:
        with contextlib.suppress(OSError, OnnxquantError):  # a cache that can't be written is none
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, content, "cache")
    return output


def default_cache() -> Path:
    """The folder that `onnxquant export` keeps exports in: $XDG_CACHE_HOME/onnxquant, or ~/.cache/onnxquant."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "onnxquant"


def to_onnx(
    model: Any,
    name: str,
    preprocessing: dict[str, Any],
    *,
    source: str,
    classes: list[str] | None = None,
    exporter: Exporter = "torchscript",
    batch: Batch = "dynamic",
    opset: int | None = None,
) -> onnx.ModelProto:
    """A torch `model` as float ONNX, with its `preprocessing`, `classes` and `source` in the metadata.

    Raises OnnxquantError: the exporter cannot convert the model, which the message calls `name`.
    """
    import torch

    model.eval()
    # Tracing with one image would make the batch a constant.
    example = torch.zeros(2 if batch == "dynamic" else batch, 3, *preprocessing["input_size"])
    try:
        with _quiet(), torch.no_grad():
            convert = _export_torchscript if exporter == "torchscript" else _export_dynamo
            proto = convert(model, example, batch == "dynamic", opset or DEFAULT_OPSET[exporter])
    except ImportError as error:
        raise _missing(error) from error
    except Exception as error:  # whatever the exporters raise, of which there is no common base
        other = "dynamo" if exporter == "torchscript" else "torchscript"
        remedy = f"--exporter {other}"
        if batch == "dynamic":
            remedy = f"--batch 1 or {remedy}"
        raise OnnxquantError(
            f"{name}: the {exporter} exporter failed with batch {batch} ({_short(error)}): try {remedy}"
        ) from error

    _strip_stack_traces(proto)
    entries = {METADATA_KEY: json.dumps(preprocessing, sort_keys=True), "onnxquant.source": source}
    if classes is not None:
        entries[CLASSES_KEY] = json.dumps(classes)
    for key, value in sorted(entries.items()):
        proto.metadata_props.add(key=key, value=value)
    return proto


def _own_file(
    name: str, preprocessing: Preprocessing, checkpoint: str | os.PathLike[str] | None, output: Path
) -> onnx.ModelProto:
    """The user's own export of a model that isn't in timm, with the preprocessing that the zoo knows of."""
    if checkpoint is None:
        raise OnnxquantError(
            f"{name} is not in timm: export it with its own code and give the ONNX file with --checkpoint, "
            "to record its preprocessing"
        )
    if output.exists() and output.samefile(checkpoint):
        raise OnnxquantError(f"{output}: is the --checkpoint itself; give another output")
    proto = read_proto(checkpoint)
    size = preprocessing.input_size
    if [spec.shape[-2:] for spec in input_specs(proto) if len(spec.shape) == 4] != [size]:
        raise OnnxquantError(
            f"--checkpoint {checkpoint}: {name} takes images of {size[0]}x{size[1]}: give its own ONNX file"
        )
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    entries |= {METADATA_KEY: preprocessing.to_json(), "onnxquant.source": name}
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, entries)
    return proto


def _cache_key(
    arch: str,
    checkpoint: str | os.PathLike[str] | None,
    exporter: Exporter,
    batch: Batch,
    seed: int | None,
    opset: int | None,
) -> str | None:
    """Stands for all that an export depends on; None where that can't be known."""
    try:
        weights = seed if checkpoint is None else hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
        versions = [metadata.version(package) for package in ("torch", "timm", "onnx", "onnxscript")]
    except (OSError, metadata.PackageNotFoundError):
        return None
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    text = json.dumps([arch, weights, exporter, batch, opset or DEFAULT_OPSET[exporter], versions, code])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _export(
    arch: str,
    checkpoint: str | os.PathLike[str] | None,
    exporter: Exporter,
    batch: Batch,
    seed: int | None,
    opset: int | None,
) -> onnx.ModelProto:
    """The model that timm calls `arch`."""
    try:
        import timm
        import torch  # noqa: F401
    except ImportError as error:
        raise _missing(error) from error
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, [*load_zoo(), *timm.list_models()], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists the known ones"
        raise OnnxquantError(f"{arch!r} is not a timm model: {hint}")
    try:
        published = timm.get_pretrained_cfg(arch)
    except RuntimeError as error:  # the tag, the part after the dot
        raise OnnxquantError(f"{arch!r} is not a timm model ({_short(error)}): check the part after the dot") from error

    classes: list[str] | None = None
    if checkpoint is not None:
        model, preprocessing, classes = _from_checkpoint(arch, Path(checkpoint))
    else:
        model = _pretrained(arch, published) if seed is None else _random(arch, seed)
        preprocessing = _preprocessing(timm.data.resolve_model_data_config(model))
    return to_onnx(
        model,
        arch,
        preprocessing,
        source=f"timm {arch}",
        classes=classes,
        exporter=exporter,
        batch=batch,
        opset=opset,
    )


def _random(arch: str, seed: int) -> Any:
    """Model with random weights; leaves torch's global generator as it was."""
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(arch, pretrained=False)


def _pretrained(arch: str, published: Any) -> Any:
    """Model with its `published` weights, from the local cache or the hub."""
    import timm

    if published is None or not published.has_weights:
        raise OnnxquantError(f"{arch}: timm has no pretrained weights for it: give --checkpoint or --seed")
    try:
        if published.hf_hub_id:
            _probe_hub(published.hf_hub_id)
        return timm.create_model(arch, pretrained=True)
    except Exception as error:  # the hub client's, the HTTP library's and timm's own
        raise OnnxquantError(
            f"{arch}: could not fetch timm's pretrained weights from the Hugging Face hub ({_short(error)}): "
            "give --checkpoint or --seed"
        ) from error


def _probe_hub(repository: str) -> None:
    """Fail at once where the hub is out of reach; its client would retry for most of a minute."""
    import huggingface_hub

    files = ("model.safetensors", "pytorch_model.bin")
    if not any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files):
        with _quiet():
            huggingface_hub.file_exists(repository, files[0])


def _from_checkpoint(arch: str, path: Path) -> tuple[Any, dict[str, Any], list[str]]:
    """Model, preprocessing and class names of a checkpoint; nothing in the file is executed."""
    import timm
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OnnxquantError(f"{path}: cannot be read ({error.strerror}): give another --checkpoint") from error
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError, ... by what is broken
        raise OnnxquantError(
            f"{path}: is no checkpoint of plain tensors and values, and loading anything else could run code: "
            "save it with tools/train.py"
        ) from error
    try:
        found, state, classes = content["arch"], content["state_dict"], content["classes"]
        preprocessing = _preprocessing(content["preprocessing"])
        options = dict(content.get("arch_options", {}))
        if not (classes and all(isinstance(name, str) for name in classes)):
            raise ValueError("classes is not a list of names")
    except (LookupError, TypeError, ValueError) as error:
        raise OnnxquantError(
            f"{path}: not a checkpoint of tools/train.py ({type(error).__name__}: {_short(error)}): "
            "it needs arch, state_dict, classes and preprocessing"
        ) from error
    Preprocessing.from_metadata({METADATA_KEY: json.dumps(preprocessing)}, str(path))  # raises where it makes no sense
    if found != arch.partition(".")[0]:
        raise OnnxquantError(
            f"{path}: holds weights of {found}, not of {arch}: export {found} or give its own checkpoint"
        )
    try:
        model = timm.create_model(arch, pretrained=False, num_classes=len(classes), **options)
        model.load_state_dict(state)
    except Exception as error:  # also TypeErrors and AttributeErrors from a state_dict that is none
        raise OnnxquantError(
            f"{path}: its weights do not fit {arch} with {len(classes)} classes in this timm version: train it again"
        ) from error
    return model, preprocessing, list(classes)


def _preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """What the file records of timm's data configuration, whose input_size is (H, W) or (C, H, W)."""
    height, width = (int(size) for size in config["input_size"][-2:])
    return {
        "input_size": [height, width],
        "crop_pct": float(config["crop_pct"]),
        "crop_mode": str(config.get("crop_mode", "center")),
        "interpolation": str(config["interpolation"]),
        "mean": [float(value) for value in config["mean"]],
        "std": [float(value) for value in config["std"]],
    }


def _export_torchscript(model: Any, example: Any, dynamic: bool, opset: int) -> onnx.ModelProto:
    import torch

    buffer = io.BytesIO()
    # On failure torch prints the whole graph from C++, which no redirection of sys.stdout catches.
    with mock.patch.object(torch._C, "_jit_onnx_log", create=True):
        torch.onnx.export(
            model,
            (example,),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None,
        )
    return onnx.load_from_string(buffer.getvalue())


def _export_dynamo(model: Any, example: Any, dynamic: bool, opset: int) -> onnx.ModelProto:
    import torch

    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
    )
    proto: onnx.ModelProto = program.model_proto
    return proto


def _strip_stack_traces(message: Any) -> None:
    """Drop the exporter's stack traces at every depth: they name local files."""
    for field, value in message.ListFields():
        if field.name == "metadata_props":
            kept = [entry for entry in value if entry.key != STACK_TRACE]
            if len(kept) < len(value):
                del value[:]
                value.extend(kept)
        elif field.message_type is not None:
            for child in (value,) if hasattr(value, "ListFields") else value:
                _strip_stack_traces(child)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch, timm and the hub client print, warn and log."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _missing(error: ImportError) -> OnnxquantError:
    return OnnxquantError(f"export needs torch, timm and onnxscript ({error}): pip install 'onnxquant[export]'")


def _short(error: Exception) -> str:
    """What `error` says, shortened to fit into one line."""
    return textwrap.shorten(first_line(error), 160, placeholder=" ...").rstrip(".:")
