"""What an uploaded file is: its type, its size, and whether it can be decoded at all.

The one rule: nothing outside this module opens a picture with Pillow. Here formats are chosen by
their first bytes, sizes are checked before pixels are made, and memory is bounded; `Image.open`
alone does none of that.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, TiffImagePlugin

from analysis.pixels import upright_rgb

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Pixels of the largest picture that is decoded. Source: Clarifai, "Upload inputs", 85 megapixels.
#: More than 178,956,970 has no effect: there Pillow itself refuses.
MAX_PIXELS = 85_000_000

#: Pictures with more pixels than this are decoded one at a time: up to 6 bytes a pixel were
#: measured (progressive JPEG without chroma subsampling; PNG 4, baseline JPEG 0.3).
LARGE_PIXELS = 20_000_000

#: Files longer than this are parsed one at a time: a GIF of nothing but comments took 37 bytes of
#: memory for each of its own.
LARGE_BYTES = 4_000_000

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

# Pillow reports odd metadata as Python warnings whose text comes out of the file: nothing a caller
# sees, but a way to fill logs and memory (Python remembers each text that it has warned of). The
# filters belong to the whole process and must not be swapped per call, which is not thread safe;
# so Pillow is silenced once. What matters of its warnings is checked below.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PictureError(Exception):
    """The bytes are no picture that can be stored; the same bytes fail again.

    The text is a sentence for the caller.
    """


class UnsupportedPictureError(PictureError):
    """The bytes are not of a supported type: JPEG, PNG, WEBP, GIF, BMP or TIFF."""


class DamagedPictureError(PictureError):
    """The bytes start like a supported type but cannot be decoded to the end."""


class OversizedPictureError(PictureError):
    """Decoding would take more pixels, or more memory, than is allowed.

    Attributes:
        limit: Most pixels that are decoded.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Picture:
    """What a file says of itself.

    Attributes:
        media_type: `image/jpeg`, `image/png`, `image/webp`, `image/gif`, `image/bmp`, `image/tiff`.
        width: Pixels as stored, before any EXIF orientation; of a TIFF, after it.
        height: Likewise.
    """

    media_type: str
    width: int
    height: int


class PictureReader:
    """Decodes pictures within bounds. Thread safe; share one, so that its bounds hold for all.

    Only the first frame of an animation and the first page of a TIFF are looked at. Bytes after
    the end of a picture are allowed and ignored: cameras and phones append their own. A file may
    thus be a picture and, say, a ZIP archive at once.
    """

    def __init__(self, *, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels = max_pixels
        self._large = threading.RLock()  # re-entered when a long file also has many pixels

    def inspect(self, content: bytes) -> Picture:
        """Decode all of *content*, throw the pixels away, and tell what it is.

        Raises:
            UnsupportedPictureError: Not one of the supported types; also for no bytes at all.
            DamagedPictureError: Truncated, damaged, or of a kind that Pillow cannot decode.
            OversizedPictureError: More than `max_pixels`, or a quarter of them in a WEBP.
        """
        with self._decoded(content, at_least=1) as (picture, _):
            return picture

    @contextmanager
    def rgb(self, content: bytes, *, at_least: int) -> Iterator[Image.Image]:
        """Yield *content* as upright RGB; let go of it at the end of the block, it may be large.

        A JPEG comes reduced, by up to 8, to save time and memory; no side gets shorter than
        *at_least* pixels by that.

        Raises:
            PictureError: As `inspect`; always before the block begins.
        """
        with self._decoded(content, at_least=at_least) as (_, image):
            with self._errors_of(_recognise(content)):
                rgb = upright_rgb(image)
            yield rgb

    @contextmanager
    def _decoded(self, content: bytes, *, at_least: int) -> Iterator[tuple[Picture, Image.Image]]:
        pillow_format = _recognise(content)
        weight = _WEBP_WEIGHT if pillow_format == "WEBP" else 1
        with contextlib.ExitStack() as stack:
            if len(content) > LARGE_BYTES:
                stack.enter_context(self._large)
            with self._errors_of(pillow_format):
                image = Image.open(io.BytesIO(content), formats=(pillow_format,))
                tile = _tile_size(image)
            self._check_size(image.size, weight)
            self._check_size(tile, weight)
            picture = Picture(Image.MIME[pillow_format], *image.size)
            if picture.width * picture.height * weight > LARGE_PIXELS:
                stack.enter_context(self._large)
            with self._errors_of(pillow_format):
                image.draft(None, (at_least, at_least))
                image.load()
            if pillow_format == "PNG" and _PNG_END not in content:
                raise _damaged(pillow_format)
            yield picture, image

    def _check_size(self, size: tuple[int, int], weight: int) -> None:
        width, height = size
        most = self._max_pixels // weight
        if width * height > most:
            msg = f"the image has {width} x {height} pixels; at most {most} in all are decoded"
            raise OversizedPictureError(msg, limit=most)

    @contextmanager
    def _errors_of(self, pillow_format: str) -> Iterator[None]:
        """Turn whatever Pillow raises into a `PictureError` with a text of ours."""
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            msg = f"the {pillow_format} image declares more pixels than are decoded"
            raise OversizedPictureError(msg, limit=self._max_pixels) from error
        except MemoryError as error:
            msg = f"the {pillow_format} image needs more memory than there is"
            raise OversizedPictureError(msg, limit=self._max_pixels) from error
        except Exception as error:  # Pillow's decoders promise no closed set of exceptions
            raise _damaged(pillow_format) from error


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
