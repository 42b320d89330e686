"""Data sets of pictures: files in a folder or a zip, or raw pixels in a uint8 array."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from onnxquant.calibration.samples import Dataset, InputSpec, Sample
from onnxquant.errors import OnnxquantError
from onnxquant.preprocessing import METADATA_KEY, Preprocessing

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What may be inside: pillow goes by the content, and would hand an EPS that calls itself .jpg to Ghostscript."""

MAX_FILE_BYTES = 256 * 1024**2
"""A file that claims to unpack to more than this is refused before it is read."""


class ImageDataset(Dataset):
    """Pictures that go through the preprocessing when asked for.

    Args:
        name: of the source.
        names: of the samples.
        open_image: gives picture number `index`; whatever it raises becomes an error that names the picture.
        spec: the input of the model the pictures are for.
        preprocessing: makes the array.
        labels: class index of every picture, where known.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        open_image: Callable[[int], Image.Image],
        spec: InputSpec,
        preprocessing: Preprocessing,
        labels: Sequence[int] | None,
    ) -> None:
        self.name, self.labels = name, labels
        self._names, self._open_image, self._spec, self._preprocessing = names, open_image, spec, preprocessing

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int, /) -> Sample:
        name = self._names[index]
        try:
            with self._open_image(index) as image:
                array = self._preprocessing(image)
        except Image.DecompressionBombError:
            raise OnnxquantError(f"{name}: far too many pixels for a picture; take it out or make it smaller") from None
        except Exception as error:  # pillow's decoders raise a dozen unrelated types on broken files
            reason = str(error) if not isinstance(error, UnidentifiedImageError) else f"not {', '.join(FORMATS)}"
            raise OnnxquantError(
                f"{name}: can't be read as an image ({reason or type(error).__name__}); replace it or take it out"
            ) from None
        label = None if self.labels is None else self.labels[index]
        return Sample(name, {self._spec.name: array[None].astype(self._spec.dtype, copy=False)}, label)


def open_images(
    path: Path, specs: Sequence[InputSpec], preprocessing: Preprocessing | None, classes: Sequence[str] | None
) -> Dataset:
    """The pictures in a folder or zip, subfolders too, sorted by path; labels as `folder_labels` finds them.

    Raises:
        OnnxquantError: no picture in it, not a zip, or the model takes no pictures.
    """
    if path.is_dir():
        members = [
            Path(folder, file).relative_to(path).as_posix()
            for folder, _, files in os.walk(path, followlinks=True)
            for file in files
        ]
        read = _folder_reader(path)
    else:
        try:
            archive = zipfile.ZipFile(path)
        except Exception as error:  # broken headers raise more than BadZipFile
            raise OnnxquantError(
                f"{path}: not a zip file, or a truncated one ({error}); copy or pack it again"
            ) from None
        members = archive.namelist()
        read = _zip_reader(archive)
    parts = {member: PurePosixPath(member) for member in members}
    # Hidden files are left out: archives made on a Mac hold a ._photo.jpg that is no image beside every photo.jpg.
    members = sorted(m for m, p in parts.items() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not members:
        raise OnnxquantError(
            f"{path}: no images in it (looked for {', '.join(sorted(SUFFIXES))}); give another folder or zip"
        )
    spec, preprocessing = image_input(str(path), specs, preprocessing)
    return ImageDataset(
        str(path),
        [f"{path}/{member}" for member in members],
        lambda index: Image.open(io.BytesIO(read(members[index])), formats=FORMATS),
        spec,
        preprocessing,
        folder_labels(members, classes),
    )


def open_pixels(
    name: str,
    pixels: NDArray[np.uint8],
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing | None,
    labels: Sequence[int] | None,
) -> Dataset:
    """The pictures in a uint8 array of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3).

    Raises:
        OnnxquantError: the array has another shape, or the model takes no pictures.
    """
    if not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))) or not pixels.size:
        raise OnnxquantError(
            f"{name}: uint8 images must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), with none of them 0, "
            f"not {pixels.shape}; transpose the array, or give float arrays that the model takes as they are"
        )
    spec, preprocessing = image_input(name, specs, preprocessing)
    gray = pixels.reshape(pixels.shape[:3]) if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels
    names = [f"{name}[{index}]" for index in range(len(pixels))]
    return ImageDataset(
        name, names, lambda index: Image.fromarray(np.ascontiguousarray(gray[index])), spec, preprocessing, labels
    )


def image_input(
    source: str, specs: Sequence[InputSpec], preprocessing: Preprocessing | None
) -> tuple[InputSpec, Preprocessing]:
    """The model's input for pictures from `source`, and how they are made ready for it.

    Raises:
        OnnxquantError: the model does not take one float (N, 3, H, W) input, or the preprocessing is unknown or gives
            another size.
    """
    spec, *others = specs
    expected = ", ".join(str(spec) for spec in specs)
    if others or len(spec.shape) != 4 or (isinstance(spec.shape[1], int) and spec.shape[1] != 3):
        raise OnnxquantError(
            f"{source}: holds images, but the model takes {expected} and not one (N, 3, H, W); "
            "give an .npz keyed by input name"
        )
    if not np.issubdtype(spec.dtype, np.floating):
        raise OnnxquantError(
            f"{source}: holds images that become floats, but the model takes {expected}; "
            "give an .npz keyed by input name"
        )
    if preprocessing is None:
        raise OnnxquantError(
            f"{source}: how to turn images into {expected} is unknown, the model has no metadata {METADATA_KEY}; "
            "say it with --preprocess imagenet, --preprocess unit or --preprocess JSON"
        )
    for wanted, given in zip(spec.shape[2:], preprocessing.input_size, strict=True):
        if isinstance(wanted, int) and wanted != given:
            height, width = preprocessing.input_size
            raise OnnxquantError(
                f"{source}: the preprocessing gives {height}x{width} images, but the model takes {expected}; "
                "give its own input_size with --preprocess"
            )
    return spec, preprocessing


def folder_labels(members: Sequence[str], classes: Sequence[str] | None) -> list[int] | None:
    """The class of every picture, from the name of the folder it lies in.

    A name is looked up among the model's `classes`; if not all are there, names that are numbers are the indices
    themselves and other names count in sorted order. Pictures beside the folders, a single folder that is no known
    class, and a number of folders other than that of `classes` mean that the folders are no classes: None.

    Args:
        members: paths relative to the source, parts separated by "/".
        classes: class names in the order of the model's outputs, where known.
    """
    folders = [PurePosixPath(member).parent.name for member in members]
    names = set(folders)
    if classes is not None and names <= set(classes):
        index = {name: position for position, name in enumerate(classes)}
    elif "" in names or len(names) == 1:
        return None
    elif all(name.isascii() and name.isdigit() for name in names):
        index = {name: int(name) for name in names}
    elif classes is not None and len(classes) != len(names):
        return None
    else:
        index = {name: position for position, name in enumerate(sorted(names))}
    return [index[folder] for folder in folders]


def _folder_reader(folder: Path) -> Callable[[str], bytes]:
    def read(member: str) -> bytes:
        _refuse_huge((folder / member).stat().st_size)
        return (folder / member).read_bytes()

    return read


def _zip_reader(archive: zipfile.ZipFile) -> Callable[[str], bytes]:
    def read(member: str) -> bytes:
        _refuse_huge(archive.getinfo(member).file_size)  # zipfile stops there even where the compressed data holds more
        return archive.read(member)

    return read


def _refuse_huge(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"it has {size} bytes, too many for a picture")
