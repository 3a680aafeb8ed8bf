"""Tagging: from a lease on images to their tags, or to trying later.

The tagger is one for all images. When it is out of reach nothing is wrong with any image,
so the whole lane pauses, longer each time, instead of every image trying for itself. An image
is given up after a day of that, unless the operator has to act first: such time does not count.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING

from analysis.images import PictureError, ProcessUnavailableError, UnprocessablePictureError
from analysis.taggers import Interrupted, Refused, Tagged, Unavailable
from storage.errors import ImageNotFoundError
from storage.images import TaggingFailed, TagLater, TagsFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from analysis.images import DecodedImage
    from analysis.taggers import Outcome, Tagger
    from dispatcher.patience import Patience
    from dispatcher.settings import DispatcherSettings
    from storage.images import Images, TaggingLease

logger = logging.getLogger(__name__)


class TaggingWorker:
    """Asks the tagger about leased images and records what it says.

    Safe to use from several threads. *decode* makes the preview of an image that has none yet,
    for a tagger that reads previews; it raises as `analysis.image_decoder.ImageDecoder.decode`.
    *clock* tells the time in milliseconds.
    """

    def __init__(
        self,
        settings: DispatcherSettings,
        *,
        images: Images,
        tagger: Tagger,
        decode: Callable[[bytes], DecodedImage],
        patience: Patience,
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._images = images
        self._tagger = tagger
        self._decode = decode
        self._patience = patience
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._paused_until = 0
        #: When the tagger failed last in a way that only the operator can correct.
        self._blocked_at = images.tagging_blocked_at()

    @property
    def is_paused(self) -> bool:
        """Whether the tagger was out of reach and is not to be asked yet."""
        return self._clock() < self._paused_until

    def lease(self, limit: int) -> Sequence[TaggingLease]:
        """Lease what is due, unless the tagger is out of reach."""
        if self.is_paused:
            return []
        return self._images.lease_for_tagging(limit=limit, now=self._clock())

    def next_due_at(self) -> int | None:
        """Return when there is work again (milliseconds), None when nothing waits."""
        due_at = self._images.next_tagging_due_at()
        return None if due_at is None else max(due_at, self._paused_until)

    def process(self, leases: Sequence[TaggingLease]) -> None:
        """Tag the leased images and end their leases."""
        contents: list[bytes] = []
        present: list[TaggingLease] = []
        unread: list[tuple[TaggingLease, Outcome]] = []
        for lease in leases:
            try:
                content = self._read(lease)
            except ImageNotFoundError:
                continue  # deleted, and its lease with it
            if isinstance(content, bytes):
                contents.append(content)
                present.append(lease)
            elif content is not None:
                unread.append((lease, content))
        outcomes = self._ask(contents) if present else []
        present += [lease for lease, _ in unread]
        outcomes += [outcome for _, outcome in unread]
        if not present:
            return
        self._note_block(outcomes, on=present[0].id)
        self._pause_or_resume(outcomes)
        settlements = [
            (lease, self._settlement(lease, outcome))
            for lease, outcome in zip(present, outcomes, strict=True)
        ]
        self._patience.insist(partial(self._images.settle_tagging, settlements), on=present[0].id)

    def _read(self, lease: TaggingLease) -> bytes | Outcome | None:
        """Return what the tagger reads of an image, or what became of that; None when stopping."""
        if self._tagger.reads_previews:
            stored = partial(self._images.rendition, lease.seq, "PREVIEW")
            preview = self._patience.insist(stored, on=lease.id)
            if preview is not None:
                return preview
        content = self._patience.insist(partial(self._images.content, lease.seq), on=lease.id)
        if content is None or not self._tagger.reads_previews:
            return content
        return self._make_preview(lease, content)

    def _make_preview(self, lease: TaggingLease, content: bytes) -> bytes | Outcome:
        try:
            decoded = self._decode(content)
        except UnprocessablePictureError as error:
            return Interrupted(str(error))
        except PictureError as error:
            return Refused(str(error))
        except ProcessUnavailableError as error:
            return Unavailable(str(error))
        renditions = (decoded.preview, decoded.thumbnail)
        store = partial(self._images.add_renditions, lease.seq, renditions)
        self._patience.insist(store, on=lease.id)
        return decoded.preview.content

    def _ask(self, contents: Sequence[bytes]) -> list[Outcome]:
        try:
            return self._tagger.tag(contents, timeout=self._settings.tagger_timeout)
        except Exception:  # a bug of the tagger's
            logger.exception("tagging.crashed")
        if len(contents) == 1:
            return [Unavailable(message="the tagger crashed")]
        # Perhaps over one image, which must not hold up the others.
        return [outcome for content in contents for outcome in self._ask([content])]

    def _settlement(
        self, lease: TaggingLease, outcome: Outcome
    ) -> TagsFound | TaggingFailed | TagLater:
        match outcome:
            case Tagged():
                logger.info("image.tagged", extra={"image": lease.id, "tags": len(outcome.tags)})
                return TagsFound(
                    tags={tag.name: tag.confidence for tag in outcome.tags}, model=outcome.model
                )
            case Refused():
                logger.warning(
                    "image.refused", extra={"image": lease.id, "detail": outcome.message}
                )
                return TaggingFailed(reason="TAGGER_REJECTED", message=outcome.message)
            case Interrupted():
                return self._interrupted(lease, outcome)
            case Unavailable():
                return self._later(lease, outcome)

    def _interrupted(self, lease: TaggingLease, outcome: Interrupted) -> TaggingFailed | TagLater:
        interruptions = lease.interruptions + 1
        if interruptions >= self._settings.max_interruptions:
            logger.error(
                "image.unprocessable", extra={"image": lease.id, "detail": outcome.message}
            )
            return TaggingFailed(reason="IMAGE_UNPROCESSABLE", message=outcome.message)
        logger.warning(
            "image.interrupted",
            extra={"image": lease.id, "detail": outcome.message, "interruptions": interruptions},
        )
        delay = 2.0**lease.interruptions - 1
        return TagLater(due_at=self._clock() + round(delay * 1000), is_interrupted=True)

    def _later(self, lease: TaggingLease, outcome: Unavailable) -> TaggingFailed | TagLater:
        now = self._clock()
        waited = (now - max(lease.pending_since, self._blocked_at)) / 1000
        if waited >= self._settings.tagging_give_up_after and not outcome.operator:
            logger.error("image.given_up", extra={"image": lease.id, "detail": outcome.message})
            return TaggingFailed(reason="TAGGER_UNAVAILABLE", message=outcome.message)
        # Wait as long again as it has waited: the attempts thin out by themselves.
        shortest, longest = self._settings.tagger_pause
        delay = max(outcome.retry_after or 0.0, min(max(waited, shortest), longest))
        return TagLater(due_at=now + round(delay * 1000))

    def _note_block(self, outcomes: Sequence[Outcome], *, on: str) -> None:
        if any(isinstance(outcome, Unavailable) and outcome.operator for outcome in outcomes):
            self._blocked_at = now = self._clock()
            # A restart does not forget it: what waited through it would be given up at once.
            self._patience.insist(partial(self._images.note_tagging_blocked, now=now), on=on)

    def _pause_or_resume(self, outcomes: Sequence[Outcome]) -> None:
        unavailable = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
        with self._lock:
            if len(unavailable) < len(outcomes):
                self._failures = 0  # it answers: what failed, failed for itself
                return
            operator = any(outcome.operator for outcome in unavailable)
            shortest, longest = (
                self._settings.tagger_operator_pause if operator else self._settings.tagger_pause
            )
            asked_for = max((outcome.retry_after or 0.0 for outcome in unavailable), default=0.0)
            pause = max(asked_for, min(shortest * 2.0 ** min(self._failures, 32), longest))
            self._failures += 1
            # Another thread may have been told to wait longer.
            self._paused_until = max(self._paused_until, self._clock() + round(pause * 1000))
        logger.log(
            logging.ERROR if operator else logging.WARNING,
            "tagging.paused",
            extra={"seconds": pause, "operator": operator, "detail": unavailable[0].message},
        )
