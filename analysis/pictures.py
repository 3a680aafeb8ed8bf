"""What an uploaded file is: its type, its size, and its pixels. Runs in a child process.

Invariant: nothing outside this module opens an image with Pillow. Here formats are chosen by their
first bytes, structure and sizes are checked before pixels are made, and memory is estimated;
`Image.open` alone does none of that.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import (
    BmpImagePlugin,  # noqa: F401 - so that all that decodes is there before limits are set
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from analysis.file_structure import read_jpeg, webp_size, without_png_metadata
from analysis.images import (
    MAX_PIXELS,
    MAX_SIDE,
    PREVIEW_SIDE,
    THUMBNAIL_SIDE,
    DamagedPictureError,
    DecodedImage,
    OversizedPictureError,
    Picture,
    Rendition,
    UnsupportedPictureError,
)
from analysis.pixels import upright_rgb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.file_structure import JpegStructure

# First bytes of a file -> Pillow's name of the format. WEBP has its length in between.
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}

# Without its last chunk a PNG may still have all its pixels, and Pillow does not miss it.
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"

# libwebp keeps whole canvases, 16 bytes a pixel in all, where the other formats need about 4: 34
# bytes of WEBP that declare 85 megapixels would take 1.3 GB.
_WEBP_WEIGHT = 4

#: Bytes of memory for a pixel that Pillow keeps, by mode; 4 for all others.
_BYTES_PER_PIXEL: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}

#: A JPEG that its decoder can scale to a long side from here to `PREVIEW_SIDE` needs no resizing.
_ENOUGH_SIDE: Final = 960

#: Quality of previews and thumbnails. Source: at 85 the local tagger's confidences differ from
#: those of the pixels themselves by less than 0.03; docs/tagging.md.
_QUALITY: Final = 85

#: What libjpeg gives for the part of an image that has no data: mid-grey.
_NO_DATA: Final = frozenset({128, (128, 128, 128)})
#: Zero bytes that stand for more data when it is tested whether a JPEG was cut.
_MORE_DATA: Final = bytes(65_536)

# Pillow reports odd metadata as Python warnings whose text comes out of the file: nothing a caller
# sees, but a way to fill logs and memory (Python remembers each text that it has warned of). The
# filters belong to the whole process and must not be swapped per call, which is not thread safe;
# so Pillow is silenced once. What matters of its warnings is checked below.
warnings.filterwarnings("ignore", module=r"PIL\.")


class LargePictureError(Exception):
    """Decoding takes more memory than the caller of `PictureReader` allows for now."""


@dataclass(frozen=True, slots=True)
class _Opened:
    picture: Picture
    image: Image.Image
    pillow_format: str
    jpeg: JpegStructure | None


class PictureReader:
    """Decodes images within bounds.

    Only the first frame of an animation and the first page of a TIFF are looked at. Bytes after
    the end of an image are allowed and ignored: cameras and phones append their own. A file may
    thus be an image and, say, a ZIP archive at once.

    Args:
        max_pixels: Most pixels that are decoded.
        max_memory_bytes: Most memory for pixels or coefficients, as estimated from the header;
            None for no limit.
    """

    def __init__(
        self, *, max_pixels: int = MAX_PIXELS, max_memory_bytes: int | None = None
    ) -> None:
        self._max_pixels = max_pixels
        self._max_memory_bytes = max_memory_bytes

    def inspect(self, content: bytes) -> Picture:
        """Decode all of *content*, throw the pixels away, and tell what it is.

        Raises:
            UnsupportedPictureError: Not one of the supported types; also for no bytes at all.
            DamagedPictureError: Truncated, damaged, or of a kind that Pillow cannot decode.
            OversizedPictureError: More than `max_pixels`, or a quarter of them in a WEBP, a side
                longer than `MAX_SIDE`, or more memory than `max_memory_bytes`.
        """
        opened = self._open(content)
        self._load(opened, scale=8)
        return opened.picture

    def decode(self, content: bytes, *, large_from_bytes: int | None = None) -> DecodedImage:
        """Decode all of *content* once, and make its preview and its thumbnail.

        Args:
            content: The file.
            large_from_bytes: Memory from which on the image is not decoded but said to be large.

        Raises:
            PictureError: As `inspect`.
            LargePictureError: Decoding takes *large_from_bytes* or more.
        """
        opened = self._open(content, large_from_bytes)
        preview = self._preview(opened)
        thumbnail = _fitted(preview, THUMBNAIL_SIDE)
        with self._errors_of(opened.pillow_format):
            return DecodedImage(
                opened.picture,
                _rendition("PREVIEW", preview),
                _rendition("THUMBNAIL", thumbnail),
            )

    def preview(self, content: bytes) -> Image.Image:
        """Return *content* as upright RGB of at most `PREVIEW_SIDE` pixels a side.

        Raises:
            PictureError: As `inspect`.
        """
        return self._preview(self._open(content))

    def _preview(self, opened: _Opened) -> Image.Image:
        self._load(opened, scale=_jpeg_scale(opened.image))
        with self._errors_of(opened.pillow_format):
            return _fitted(upright_rgb(opened.image, at_most=PREVIEW_SIDE), PREVIEW_SIDE)

    def _open(self, content: bytes, large_from_bytes: int | None = None) -> _Opened:
        pillow_format = _recognise(content)
        weight = _WEBP_WEIGHT if pillow_format == "WEBP" else 1
        jpeg = None
        if pillow_format == "JPEG":
            jpeg = read_jpeg(content)
            content = jpeg.kept
        elif pillow_format == "WEBP":
            # Pillow makes libwebp's canvas as soon as it opens a file.
            size = webp_size(content)
            self._check_size(size, weight)
            self._check_memory(4 * weight * size[0] * size[1], large_from_bytes)
        elif pillow_format == "PNG":
            content = without_png_metadata(content)
            if _PNG_END not in content:
                raise _damaged(pillow_format)
        with self._errors_of(pillow_format):
            image = Image.open(io.BytesIO(content), formats=(pillow_format,))
            tile = _tile_size(image)
        self._check_size(image.size, weight)
        self._check_size(tile, weight)
        picture = Picture(Image.MIME[pillow_format], *image.size)
        self._check_memory(_memory_of(image, jpeg, weight), large_from_bytes)
        return _Opened(picture, image, pillow_format, jpeg)

    def _check_memory(self, memory_bytes: int, large_from_bytes: int | None) -> None:
        """Check what decoding takes at most."""
        if self._max_memory_bytes is not None and memory_bytes > self._max_memory_bytes:
            msg = (
                f"the image takes {memory_bytes:,} bytes of memory to decode;"
                f" at most {self._max_memory_bytes:,} are allowed"
            )
            raise OversizedPictureError(msg, limit=self._max_memory_bytes)
        if large_from_bytes is not None and memory_bytes >= large_from_bytes:
            raise LargePictureError

    def _load(self, opened: _Opened, *, scale: int) -> None:
        """Decode all pixels; those of a JPEG at 1/*scale* of its size."""
        with self._errors_of(opened.pillow_format):
            _draft_and_load(opened.image, scale)
            was_cut = opened.jpeg is not None and _was_cut(opened.jpeg, opened.image, scale)
        if was_cut:
            msg = "the image starts like a JPEG but is truncated"
            raise DamagedPictureError(msg)

    def _check_size(self, size: tuple[int, int], weight: int) -> None:
        width, height = size
        most = self._max_pixels // weight
        if width * height > most:
            msg = f"the image has {width} x {height} pixels; at most {most} in all are decoded"
            raise OversizedPictureError(msg, limit=most)
        if max(size) > MAX_SIDE:
            msg = f"the image has {width} x {height} pixels; at most {MAX_SIDE} a side are decoded"
            raise OversizedPictureError(msg, limit=MAX_SIDE)

    @contextmanager
    def _errors_of(self, pillow_format: str) -> Iterator[None]:
        """Turn whatever Pillow raises into a `PictureError` with a text of ours."""
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            msg = f"the {pillow_format} image declares more pixels than are decoded"
            raise OversizedPictureError(msg, limit=self._max_pixels) from error
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders promise no closed set of exceptions
            if "out of memory" in str(error):
                raise MemoryError from error
            raise _damaged(pillow_format) from error


def _jpeg_scale(image: Image.Image) -> int:
    """Return by how much a JPEG can be reduced, at no cost, while it is decoded to a preview."""
    longest = max(image.size)
    return next((scale for scale in (8, 4, 2) if longest / scale >= _ENOUGH_SIDE), 1)


def _draft_and_load(image: Image.Image, scale: int) -> None:
    width, height = image.size
    image.draft(None, (max(1, width // scale), max(1, height // scale)))
    image.load()


def _was_cut(jpeg: JpegStructure, image: Image.Image, scale: int) -> bool:
    """Tell whether a sequential JPEG ends before its last pixel, though an end marker follows.

    libjpeg makes the missing part grey and reports no error. If the last pixel is of that grey, the
    image is decoded again with more data before its end marker: a whole image stays as it is.
    """
    if jpeg.keeps_coefficients or not jpeg.is_closed:
        return False
    last = image.width - 1, image.height - 1
    if image.getpixel(last) not in _NO_DATA:
        return False
    more = jpeg.kept[:-2] + _MORE_DATA + jpeg.kept[-2:]
    longer = Image.open(io.BytesIO(more), formats=("JPEG",))
    _draft_and_load(longer, scale)
    return longer.tobytes() != image.tobytes()


def _memory_of(image: Image.Image, jpeg: JpegStructure | None, weight: int) -> int:
    """Estimate the memory that decoding takes at most, in bytes."""
    pixels = image.width * image.height
    if jpeg is not None:
        coefficients = jpeg.coefficient_bytes if jpeg.keeps_coefficients else 0
        return coefficients + 4 * pixels // _jpeg_scale(image) ** 2
    if weight > 1:
        return 4 * weight * pixels
    return _BYTES_PER_PIXEL.get(image.mode, 4) * pixels


def _fitted(rgb: Image.Image, side: int) -> Image.Image:
    """Return *rgb* with no side longer than *side*."""
    longest = max(rgb.size)
    if longest <= side:
        return rgb
    width, height = (max(1, round(each * side / longest)) for each in rgb.size)
    return rgb.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.1)


def _rendition(kind: str, rgb: Image.Image) -> Rendition:
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=_QUALITY)
    return Rendition(kind, rgb.width, rgb.height, file.getvalue())


def _recognise(content: bytes) -> str:
    """Return Pillow's name for the format that *content* starts like."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    for signature, pillow_format in _SIGNATURES.items():
        if content.startswith(signature):
            return pillow_format
    what = "the bytes are not of a supported type" if content else "the image is empty"
    msg = f"{what}; supported are JPEG, PNG, WEBP, GIF, BMP and TIFF"
    raise UnsupportedPictureError(msg)


def _damaged(pillow_format: str) -> DamagedPictureError:
    return DamagedPictureError(
        f"the image starts like a {pillow_format} but is truncated, damaged or of an unusual kind"
    )


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a tile: a TIFF of one pixel may have tiles of gigabytes."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    tags = image.tag_v2
    return int(tags.get(TiffImagePlugin.TILEWIDTH, 0)), int(tags.get(TiffImagePlugin.TILELENGTH, 0))
