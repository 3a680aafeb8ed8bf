"""The tags of images that changed since the segment was written: few, so dictionaries do."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    #: Of one image: (tag id, confidence in millionths), each tag once.
    Postings = Sequence[tuple[int, int]]


class Recent:
    """Images with their tags as they are now, whatever an older segment says of them."""

    def __init__(self) -> None:
        self._postings_of: dict[int, Postings] = {}
        #: tag id -> image number -> confidence
        self._images_by_tag: dict[int, dict[int, int]] = {}

    def __contains__(self, seq: int) -> bool:
        """Tell whether image number *seq* changed."""
        return seq in self._postings_of

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the images."""
        return iter(self._postings_of)

    def put(self, seq: int, postings: Postings) -> None:
        """Take *postings* for those of image number *seq*, in place of what they were."""
        self._unlink(seq)
        self._postings_of[seq] = postings
        for tag_id, confidence in postings:
            self._images_by_tag.setdefault(tag_id, {})[seq] = confidence

    def snapshot(self) -> Mapping[int, Postings]:
        """Return image number -> postings, as of now."""
        return dict(self._postings_of)

    def forget(self, known: Mapping[int, Postings]) -> None:
        """Forget what a `snapshot` said and still holds: a segment says it now."""
        for seq, postings in known.items():
            if self._postings_of.get(seq) is postings:
                self._unlink(seq)
                del self._postings_of[seq]

    def best(self, tag_ids: Iterable[int], limit: int) -> list[tuple[int, int]]:
        """Return (sum of confidences, image number), best first; see `TagIndex.best`."""
        sums: dict[int, int] = {}
        for tag_id in tag_ids:
            for seq, confidence in self._images_by_tag.get(tag_id, {}).items():
                sums[seq] = sums.get(seq, 0) + confidence
        found = heapq.nsmallest(limit, sums.items(), key=lambda item: (-item[1], item[0]))
        return [(total, seq) for seq, total in found]

    def confidences(self, seq: int, tag_ids: Iterable[int]) -> dict[int, int]:
        """Return tag id -> confidence, for those of *tag_ids* that the image has."""
        wanted = set(tag_ids)
        return {tag: value for tag, value in self._postings_of[seq] if tag in wanted}

    def _unlink(self, seq: int) -> None:
        for tag_id, _ in self._postings_of.get(seq, ()):
            images = self._images_by_tag[tag_id]
            del images[seq]
            if not images:
                del self._images_by_tag[tag_id]
