"""JPEGs of a wanted size, as many different ones as wanted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

_PHOTO: Final = Path(__file__).parents[1] / "examples" / "photos" / "mountain-lake.jpg"
#: Longest comment segment of a JPEG: its length, two bytes of which count, is 16 bits.
_LONGEST_COMMENT: Final = 65_533


def photo(size_bytes: int) -> bytes:
    """Return a real photo, scaled so that its JPEG of quality 85 has about *size_bytes*."""
    with Image.open(_PHOTO) as image:
        scale = 1.0
        found = b""
        while abs(len(found) - size_bytes) > size_bytes * 0.01:
            size = round(image.width * scale), round(image.height * scale)
            found = _jpeg(image.resize(size, Image.Resampling.LANCZOS))
            scale *= (size_bytes / len(found)) ** 0.5  # bytes grow with the area, about
    return found


def padded(size_bytes: int) -> bytes:
    """Return a JPEG of exactly *size_bytes*, a small picture and comments: quick to make."""
    small = _jpeg(Image.new("RGB", (64, 48), (90, 120, 60)))
    missing, comments = size_bytes - len(small), []
    while missing > 0:
        take = min(missing, _LONGEST_COMMENT + 2)
        if 0 < missing - take < 4:  # the next one could not hold its own marker and length
            take -= 4
        comments.append(_comment(bytes(take - 4)))
        missing -= take
    return small[:2] + b"".join(comments) + small[2:]


def distinct(jpeg: bytes) -> Iterator[bytes]:
    """Yield *jpeg* again and again, each time with another number in a comment."""
    number = 0
    while True:
        number += 1
        yield jpeg[:2] + _comment(number.to_bytes(8, "big")) + jpeg[2:]


def _jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


def _comment(text: bytes) -> bytes:
    return b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
