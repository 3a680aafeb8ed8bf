"""What decoding an image gives, and how it can fail; shared by the server and its child processes.

Invariant: nothing here imports Pillow, so that the server process does not hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Pixels of the largest image that is decoded. Source: Clarifai, "Upload inputs", 85 megapixels.
#: More than 178,956,970 has no effect: there Pillow itself rejects an image.
MAX_PIXELS: Final = 85_000_000
#: Longest side in pixels. Source: the largest that JPEG and GIF can express. Decoders keep several
#: bytes for each row, so 1 x 80,000,000 pixels take far more memory than 9,000 x 9,000.
MAX_SIDE: Final = 65_535
#: Longest side of a preview and of a thumbnail, in pixels.
PREVIEW_SIDE: Final = 1_280
THUMBNAIL_SIDE: Final = 256


class PictureError(Exception):
    """The bytes are no image that can be stored; the same bytes fail again.

    The text is for the caller.
    """


class UnsupportedPictureError(PictureError):
    """The bytes are not of a supported type: JPEG, PNG, WEBP, GIF, BMP or TIFF."""


class DamagedPictureError(PictureError):
    """The bytes start like a supported type but cannot be decoded to the end."""


class OversizedPictureError(PictureError):
    """Decoding would take more pixels, or more memory, than is allowed.

    Attributes:
        limit: Most pixels, pixels of a side, or bytes of memory, whichever the text names.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class UnprocessablePictureError(PictureError):
    """The image ended the process that decoded it, or took longer than is allowed."""


class ProcessUnavailableError(Exception):
    """No child process can do the work now. Nothing is wrong with the image; a retry helps."""


class WorkCancelledError(ProcessUnavailableError):
    """The caller left, its deadline passed, or the server stops."""


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


@dataclass(frozen=True, slots=True)
class Rendition:
    """A smaller JPEG of an image: upright, RGB, without metadata.

    Attributes:
        kind: `PREVIEW` or `THUMBNAIL`.
        width: In pixels, at most `PREVIEW_SIDE` or `THUMBNAIL_SIDE`.
        height: Likewise.
        content: The JPEG file.
    """

    kind: str
    width: int
    height: int
    content: bytes


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """What an upload needs to know of an image, after all of it was decoded once."""

    picture: Picture
    preview: Rendition
    thumbnail: Rendition
