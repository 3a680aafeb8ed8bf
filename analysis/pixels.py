"""Pixels as people see them: from any image that Pillow has decoded to upright RGB.

Invariant: Pillow's own `convert("RGB")` is not enough. It clips 16-bit values to white and shows
what lies beneath transparent pixels. And no second image of full size is made: a large one is
converted and reduced in strips.
"""

from __future__ import annotations

import contextlib
from typing import Final, cast

from PIL import ExifTags, Image

# EXIF orientation -> what makes the image upright. Source: EXIF 2.32, tag 0x0112.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Pixels that are converted at once: up to 16 bytes each.
_STRIP_PIXELS: Final = 1_000_000


def upright_rgb(image: Image.Image, *, at_most: int | None = None) -> Image.Image:
    """Return *image* as 8-bit RGB, turned as its EXIF says, on white where it is transparent.

    With *at_most* it is reduced by a whole number; its long side stays at least *at_most* pixels.
    """
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _reduced_rgb(image, max(1, max(image.size) // at_most) if at_most else 1)
    return rgb.transpose(turn) if turn is not None else rgb


def _orientation(image: Image.Image) -> int:
    # Unreadable EXIF is no reason to reject an image, and what Pillow raises for it is open.
    with contextlib.suppress(Exception):
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _reduced_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Return *image* as RGB, each *factor* x *factor* pixels as their mean."""
    levels = _levels(image)
    if factor == 1:
        return _rgb(image, levels)
    width, height = image.size
    reduced = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        reduced.paste(_rgb(strip, levels).reduce(factor), (0, top // factor))
    return reduced


def _levels(image: Image.Image) -> tuple[float, float] | None:
    """Return the darkest and the lightest value of grey of 16 or 32 bits; None for other images."""
    if not image.mode.startswith(("I", "F")):
        return None
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    extremes = [
        # One band, so one pair.
        cast(
            "tuple[float, float]",
            image.crop((0, top, width, min(top + rows, height))).convert("F").getextrema(),
        )
        for top in range(0, height, rows)
    ]
    return min(low for low, _ in extremes), max(high for _, high in extremes)


def _rgb(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        return _stretched(image, *levels).convert("RGB")
    if image.has_transparency_data:
        layers = image if image.mode == "RGBA" else image.convert("RGBA")  # no needless copy
        backed = Image.new("RGB", image.size, "white")
        backed.paste(layers, mask=layers.getchannel("A"))
        return backed
    return image if image.mode == "RGB" else image.convert("RGB")


def _stretched(image: Image.Image, low: float, high: float) -> Image.Image:
    """Return grey of 16 or 32 bits as 8 bits, its darkest value black and its lightest white."""
    scale = 255 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")
