"""Decodes images in child processes, so that no image can stop the server.

Most images get by with little time and memory; they are decoded beside each other. One that needs
more is decoded again with all that is allowed, one at a time. So an image that is slow or large
never keeps others from their turn for long, and the memory of all together is bounded.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from analysis.images import (
    DamagedPictureError,
    DecodedImage,
    OversizedPictureError,
    Picture,
    ProcessUnavailableError,
    Rendition,
    UnprocessablePictureError,
    UnsupportedPictureError,
    WorkCancelledError,
)
from analysis.processes.child import ChildDiedError
from analysis.processes.pool import ProcessPool, fields_of
from analysis.processes.turns import Cancellation, Turns, seconds_until

logger = logging.getLogger(__name__)

#: Processor time of an image that is decoded beside others, in seconds: photos take up to 0.1.
_ORDINARY_CPU_SECONDS: Final = 0.5
#: Memory for the pixels of an image that is decoded beside others, in bytes: 8 megapixels, or any
#: ordinary JPEG.
_ORDINARY_BYTES: Final = 32_000_000
#: Address space of a child meanwhile, beside two copies of the file.
_ORDINARY_ADDRESS_SPACE: Final = 136_000_000
#: By how much more than its processor time an image may take: the machine may be busy with others.
_PATIENCE: Final = 10.0
#: How long an image waits for its turn at most, and then for a child to be ready, in seconds.
_MAX_WAIT_SECONDS: Final = 30.0
_MAX_START_SECONDS: Final = 10.0
#: How often an image is tried whose child crashed, and whose child was ended from outside: that
#: one may have been ended by an operator or for lack of memory elsewhere.
_MAX_CRASHES: Final = 2
_MAX_OUTSIDE_ENDS: Final = 6

_ERRORS: Final = {"unsupported": UnsupportedPictureError, "damaged": DamagedPictureError}
_MEDIA_TYPES: Final = frozenset(
    f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff")
)


class _TooMuch(Enum):
    """What an image needs more of than it was allowed."""

    TIME = auto()
    MEMORY = auto()


@dataclass(frozen=True, slots=True)
class _Lane:
    """How many images are decoded at once, and what each may take."""

    turns: Turns
    cpu_seconds: float
    address_space: int
    #: Memory from which on an image is not begun; None: any is.
    large_from_bytes: int | None


class ImageDecoder:
    """Decodes images in child processes. Thread safe.

    Args:
        processes: Images that are decoded at once; one more that is large or slow.
        memory_bytes: Address space of a child.
        cpu_seconds: Processor time for one image.
        max_pixels: Most pixels that are decoded.
        module: What a child runs.
    """

    def __init__(
        self,
        *,
        processes: int,
        memory_bytes: int,
        cpu_seconds: float,
        max_pixels: int,
        module: str = "analysis.processes.decoder_main",
    ) -> None:
        self._memory_bytes = memory_bytes
        self._cpu_seconds = cpu_seconds
        self._pool = ProcessPool(
            "decoder",
            module,
            ["--memory", str(memory_bytes), "--max-pixels", str(max_pixels)],
            size=processes,
        )
        self._ordinary = _Lane(
            Turns(processes),
            min(_ORDINARY_CPU_SECONDS, cpu_seconds),
            _ORDINARY_ADDRESS_SPACE,
            _ORDINARY_BYTES,
        )
        self._alone = _Lane(Turns(1), cpu_seconds, memory_bytes, None)

    def start(self) -> None:
        """Start the children, in the background."""
        self._pool.start()

    def close(self) -> None:
        """End all decoding, and all waiting for it, with `WorkCancelledError`."""
        for lane in (self._ordinary, self._alone):
            lane.turns.close()
        self._pool.close()

    def process_ids(self) -> list[int]:
        """Return the process ids of the children that are ready or decode."""
        return self._pool.process_ids()

    def decode(
        self, content: bytes, *, caller: str = "", cancellation: Cancellation | None = None
    ) -> DecodedImage:
        """Decode all of *content*, and make its preview and its thumbnail.

        Args:
            content: The file.
            caller: Whose image it is; callers that wait take turns.
            cancellation: Ends the waiting and the decoding.

        Raises:
            PictureError: The image cannot be stored; the same bytes fail again.
            ProcessUnavailableError: No child could do it now; nothing is wrong with the image.
            WorkCancelledError: It was cancelled, or the decoder is closed.
        """
        if 3 * len(content) > self._memory_bytes:  # the file, a copy, and pixels
            raise self._oversized()
        cancellation = cancellation or Cancellation()
        waits_until = time.monotonic() + _MAX_WAIT_SECONDS
        too_much = _TooMuch.TIME
        for lane in (self._ordinary, self._alone):
            found = self._decode_in(lane, content, caller, cancellation, waits_until)
            if isinstance(found, DecodedImage):
                return found
            too_much = found
        if too_much is _TooMuch.MEMORY:
            raise self._oversized()
        msg = f"the image takes more than {self._cpu_seconds:g} s to decode"
        raise UnprocessablePictureError(msg)

    def _oversized(self) -> OversizedPictureError:
        msg = f"the image takes more than {self._memory_bytes:,} bytes of memory to decode"
        return OversizedPictureError(msg, limit=self._memory_bytes)

    def _decode_in(
        self,
        lane: _Lane,
        content: bytes,
        caller: str,
        cancellation: Cancellation,
        waits_until: float,
    ) -> DecodedImage | _TooMuch:
        """Return what children of *lane* made of *content*; several if one ends over it."""
        crashes = outside_ends = 0
        while True:
            try:
                with lane.turns.turn(
                    caller, cancellation=cancellation, timeout=seconds_until(waits_until)
                ):
                    return self._decode_once(lane, content, cancellation)
            except ChildDiedError as death:
                if cancellation.is_cancelled or self._pool.is_closed:
                    msg = "the call was cancelled"
                    raise WorkCancelledError(msg) from None
                if death.used_up_its_cpu_time:
                    return _TooMuch.TIME
                if death.was_late:
                    msg = "the machine is too busy to decode the image"
                    raise ProcessUnavailableError(msg) from death
                logger.warning("decoder.died", extra={"detail": str(death)})
                crashes += not death.was_ended_from_outside
                outside_ends += death.was_ended_from_outside
                if crashes >= _MAX_CRASHES or outside_ends >= _MAX_OUTSIDE_ENDS:
                    msg = f"the image ended the process that decoded it ({death})"
                    raise UnprocessablePictureError(msg) from death

    def _decode_once(
        self, lane: _Lane, content: bytes, cancellation: Cancellation
    ) -> DecodedImage | _TooMuch:
        request = {
            "cpu_seconds": lane.cpu_seconds,
            "memory": lane.address_space + 2 * len(content),
            "large_from_bytes": lane.large_from_bytes,
        }
        with (
            self._pool.child(timeout=_MAX_START_SECONDS) as child,
            cancellation.calling(child.kill),
        ):
            response, blobs = child.exchange(
                request, [content], timeout=lane.cpu_seconds * _PATIENCE
            )
        try:
            return _decoded(response, blobs)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            msg = "the image made the process that decoded it respond with something else"
            raise UnprocessablePictureError(msg) from error


def _decoded(response: dict[str, Any], blobs: list[bytes]) -> DecodedImage | _TooMuch:
    """Return what a child said, or raise it."""
    outcome = response["outcome"]
    if outcome in {"large", "memory"}:
        return _TooMuch.MEMORY
    if outcome == "oversized":
        raise OversizedPictureError(str(response["message"]), limit=int(response["limit"]))
    if outcome in _ERRORS:
        raise _ERRORS[outcome](str(response["message"]))
    media_type, width, height = fields_of(response["picture"], 3)
    if media_type not in _MEDIA_TYPES:
        raise ValueError(media_type)
    preview, thumbnail = (
        Rendition(kind, int(size[0]), int(size[1]), content)
        for kind, size, content in zip(
            ("PREVIEW", "THUMBNAIL"), fields_of(response["sizes"], 2), blobs, strict=True
        )
    )
    return DecodedImage(Picture(media_type, int(width), int(height)), preview, thumbnail)
