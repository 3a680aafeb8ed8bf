"""The index as one: a segment, the changes since, and the merging of the two.

Kept fresh by the feed of changes in storage. The segment's files are a cache: the database says
which ones go with it, and they are made anew from it when they are missing.
"""

from __future__ import annotations

import errno
import logging
import secrets
import shutil
import threading
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import numpy as np

from dispatcher.index.recent import Recent
from dispatcher.index.search import Search
from dispatcher.index.segment import Segment
from dispatcher.index.writing import Changes, write_segment
from storage.errors import StorageError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from storage.tags import Tags

logger = logging.getLogger(__name__)

#: Changes that are merged into a segment at once: so many, and one for so many of its images.
#: More make the search among the recent ones slow (0.1 ms a thousand), fewer mean more writing.
MERGE_AT: Final = 1024
_MERGE_SHARE: Final = 256
#: Rows of the database that become a segment at once, when there is none: 24 bytes each.
_ROWS_AT_ONCE: Final = 2_000_000
#: In the name of a segment, for a newer picback with other files.
_FORMAT: Final = "1"


@dataclass(frozen=True, slots=True)
class Found:
    """An image and the tags that were asked for."""

    seq: int
    #: Of the confidences, in millionths.
    score: int
    #: Tag id -> confidence in millionths.
    confidences: Mapping[int, int]


class TagIndex:
    """All tags of all images, as fresh as the last commit after `refresh`.

    Safe to use from any thread; one thread at a time searches. One for a database: what it
    merges it removes from the feed.

    Args:
        tags: Where they are stored.
        merge_at: After how many changes a small index is merged.
    """

    def __init__(self, tags: Tags, *, merge_at: int = MERGE_AT) -> None:
        self._tags = tags
        self._folder = tags.index_folder
        self._merge_at = merge_at
        self._lock = threading.Lock()
        self._one_merge = threading.Lock()
        self._merging: threading.Thread | None = None
        self._recent = Recent()
        #: What is known of all other images; None: nothing.
        self._merged: Search | None = None
        #: The place in the feed up to which the index goes; -1: nothing was read yet.
        self._watermark = -1
        self._merge_due_at = 0

    def refresh(self) -> bool:
        """Take in what was committed until now; tell whether there was anything.

        Raises:
            StorageError: The database could not be read. Trying again may help.
        """
        with self._lock:
            is_first = self._watermark < 0
            if is_first:
                self._watermark = self._load()
                self._merge_due_at = self._watermark + self._merge_after()
            self._watermark, changed = self._tags.changed_since(self._watermark)
            for seq, postings in changed:
                self._recent.put(seq, postings)
                if self._merged is not None:
                    self._merged.hide(seq)
            if self._watermark >= self._merge_due_at:
                self._merge_due_at = self._watermark + self._merge_after()
                self._merge_in_background()
        return is_first or bool(changed)

    def search(self, tag_ids: Collection[int], limit: int) -> list[Found]:
        """Return the images with the highest sums of *tag_ids*' confidences, best first.

        Of equal sums the image stored first comes first. At most *limit*, which may be 100.
        """
        with self._lock:
            ranked = self._recent.best(tag_ids, limit)
            if self._merged is not None:
                ranked += self._merged.best(tag_ids, limit)
                ranked.sort(key=lambda entry: (-entry[0], entry[1]))
            return [
                Found(seq, score, self._confidences(seq, tag_ids)) for score, seq in ranked[:limit]
            ]

    def merge(self) -> None:
        """Write a new segment with the recent changes in it. Searches go on meanwhile.

        Raises:
            StorageError: It could not be written. The index goes on as it was.
        """
        with self._one_merge:
            with self._lock:
                known, watermark = self._recent.snapshot(), self._watermark
            segment = self._write(Changes.of(known))
            try:
                self._tags.set_index(segment.name, watermark)
            except StorageError:
                shutil.rmtree(self._folder / segment.name, ignore_errors=True)
                raise
            with self._lock:
                self._recent.forget(known)
                self._adopt(segment)

    def close(self) -> None:
        """Return when nothing is being merged."""
        if self._merging is not None:
            self._merging.join()

    def _load(self) -> int:
        """Take the segment that goes with the database, and return its place in the feed."""
        name, watermark = self._tags.index() or ("", 0)
        if name.startswith(_FORMAT):
            try:
                self._adopt(Segment(self._folder / name))
            except (OSError, ValueError) as error:
                logger.warning("index.made_anew", extra={"error": str(error)})
            else:
                return watermark
        return self._build()

    def _build(self) -> int:
        """Read all tags from the database, and return the place in the feed before that."""
        watermark = self._tags.watermark()  # what changes while we read is read again
        rows = np.empty((0, 3), np.int64)
        for read in self._tags.all_rows():
            more = np.fromiter(chain.from_iterable(read), np.int64, 3 * len(read)).reshape(-1, 3)
            rows = np.concatenate([rows, _effective(more)])
            if len(rows) >= _ROWS_AT_ONCE:
                self._adopt(self._write(Changes(np.unique(rows[:, 0]), rows)))
                rows = rows[:0]
        images = np.unique(rows[:, 0])
        if self._merged is None and len(images) < self._merge_at:
            self._keep_in_memory(rows)
            return watermark
        try:
            segment = self._write(Changes(images, rows))
        except StorageFullError as error:  # searches work without it, only slower
            logger.warning("index.not_written", extra={"error": str(error)})
            self._keep_in_memory(rows)
            return watermark
        self._adopt(segment)
        try:
            self._tags.set_index(segment.name, watermark)
        except StorageFullError as error:  # the next start makes it again
            logger.warning("index.not_recorded", extra={"error": str(error)})
        return watermark

    def _keep_in_memory(self, rows: NDArray[np.int64]) -> None:
        for seq, group in groupby(rows.tolist(), key=itemgetter(0)):
            self._recent.put(seq, [(tag, confidence) for _, tag, confidence in group])

    def _write(self, changes: Changes) -> Segment:
        folder = self._folder / f"{_FORMAT}-{secrets.token_hex(8)}"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_segment(folder, self._merged.segment if self._merged else None, changes)
            return Segment(folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            kind = StorageFullError if error.errno == errno.ENOSPC else StorageError
            msg = f"the index of tags cannot be written: {error.strerror}"
            raise kind(msg) from error

    def _adopt(self, segment: Segment) -> None:
        """Search in *segment* from now on, but for what is recent, and remove all others."""
        self._merged = Search(segment)
        for seq in self._recent:
            self._merged.hide(seq)
        for folder in self._folder.iterdir():
            if folder.name != segment.name:  # files that are mapped live on until nobody uses them
                shutil.rmtree(folder, ignore_errors=True)

    def _confidences(self, seq: int, tag_ids: Iterable[int]) -> Mapping[int, int]:
        if seq in self._recent:
            return self._recent.confidences(seq, tag_ids)
        return self._merged.confidences(seq, tag_ids) if self._merged else {}

    def _merge_after(self) -> int:
        """Return after how many changes to merge."""
        images = len(self._merged.segment) if self._merged else 0
        return self._merge_at + images // _MERGE_SHARE

    def _merge_in_background(self) -> None:
        if self._merging is None or not self._merging.is_alive():
            self._merging = threading.Thread(
                target=self._merge_or_say_why, name="picback-index", daemon=True
            )
            try:
                self._merging.start()
            except (
                RuntimeError
            ) as error:  # the system refuses a thread; the next change tries again
                self._merging = None
                logger.warning("index.not_merged", extra={"error": str(error)})

    def _merge_or_say_why(self) -> None:
        try:
            self.merge()
        except StorageError as error:  # the recent changes stay where they are, a little slower
            logger.warning("index.not_merged", extra={"error": str(error)})


def _effective(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of `Tags.all_rows` that count."""
    counts = np.ones(len(rows), np.bool_)
    counts[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    return rows[counts & (rows[:, 2] > 0)]
