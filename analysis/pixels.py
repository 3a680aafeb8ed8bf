"""Pixels as people see them: from any picture that Pillow has decoded to upright RGB.

The one rule: Pillow's own `convert("RGB")` is not enough. It clips 16-bit values to white and shows
what lies beneath transparent pixels.
"""

from __future__ import annotations

import contextlib
from typing import cast

from PIL import ExifTags, Image

# EXIF orientation -> what makes the picture upright. Source: EXIF 2.32, tag 0x0112.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return *image* as 8-bit RGB, turned as its EXIF says, on white where it is transparent."""
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(image)
    return rgb.transpose(turn) if turn is not None else rgb


def _orientation(image: Image.Image) -> int:
    # Unreadable EXIF is no reason to refuse a picture, and what Pillow raises for it is open.
    with contextlib.suppress(Exception):
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _stretched(image).convert("RGB")
    if image.has_transparency_data:
        layers = image if image.mode == "RGBA" else image.convert("RGBA")  # no needless copy
        backed = Image.new("RGB", image.size, "white")
        backed.paste(layers, mask=layers.getchannel("A"))
        return backed
    return image if image.mode == "RGB" else image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """Return grey of 16 or 32 bits as 8 bits, its darkest value black and its lightest white."""
    values = image.convert("F")
    low, high = cast("tuple[float, float]", values.getextrema())  # one band, so one pair
    scale = 255 / (high - low) if high > low else 0.0
    return values.point(lambda value: value * scale - low * scale).convert("L")
