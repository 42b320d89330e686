"""Runs in the export environment: `Preprocessing` against timm's own evaluation transform."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from onnxquant.preprocessing import Preprocessing

pytestmark = pytest.mark.export

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def timms(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """What timm's data set and evaluation transform make of the image."""
    from timm.data import create_transform

    transform = create_transform(
        (3, *preprocessing.input_size),
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    return np.asarray(transform(image.convert("RGB")))


@pytest.mark.parametrize(
    "size", [(500, 375), (333, 501), (224, 224), (256, 256), (37, 53), (8, 8), (61, 1), (1023, 767)]
)
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("input_size", [(224, 224), (64, 64), (192, 128), (97, 160)])
def test_an_image_of_any_size_becomes_what_timm_makes_of_it(size, crop_pct, interpolation, input_size):
    image = noise(*size)
    preprocessing = Preprocessing(
        input_size=input_size, crop_pct=crop_pct, interpolation=interpolation, mean=MEAN, std=STD
    )
    ours, theirs = preprocessing(image), timms(image, preprocessing)
    assert ours.shape == theirs.shape == (3, *input_size)
    assert np.abs(ours - theirs).max() <= 1e-6


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA", "YCbCr"])
def test_an_image_of_any_8_bit_mode_becomes_what_timm_makes_of_it(mode):
    image = noise(71, 45, mode if mode not in {"LA", "YCbCr", "CMYK"} else "RGB").convert(mode)
    preprocessing = Preprocessing(input_size=(32, 32), crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD)
    assert np.abs(preprocessing(image) - timms(image, preprocessing)).max() <= 1e-6


def test_an_image_with_exif_rotation_stays_as_it_is_stored_as_with_timm(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    noise(60, 40).save(tmp_path / "rotated.jpg", exif=exif)
    preprocessing = Preprocessing(input_size=(32, 32), crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD)
    with Image.open(tmp_path / "rotated.jpg") as image:
        assert image.getexif()[0x0112] == 6
        assert np.abs(preprocessing(image) - timms(image, preprocessing)).max() <= 1e-6
