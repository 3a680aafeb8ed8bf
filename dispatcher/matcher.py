"""Which image a text means: the one whose matching tags have the highest sum.

A tag matches when one of its keys is a word or phrase of the text; it counts once. Equal
sums go to the image stored first. Sums are of integers, so they are exact and the same
on every path. What a tag's keys are, and a text's phrases, is `analysis.lemmas`' business.
"""

from __future__ import annotations

import heapq
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.lemmas import KEYS_REVISION, phrases
from storage.errors import StorageError
from storage.query_records import Match, MatchedTag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analysis.lemmas import Lemmatizer
    from storage.images import Images
    from storage.tags import Tags

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """A text's lemmas in order, and the images that it matches, best first."""

    lemmas: tuple[str, ...]
    matches: tuple[Match, ...]


class Matcher:
    """An index of all tags in memory, as fresh as the last commit at every call.

    Safe to use from any thread; one thread at a time searches. Memory: about 150 bytes per
    tag of an image. Time: grows with the number of images that carry the text's tags.
    """

    def __init__(self, *, tags: Tags, images: Images, lemmatizer: Lemmatizer) -> None:
        self._tags = tags
        self._images = images
        self._lemmatizer = lemmatizer
        self._lock = threading.Lock()
        self._watermark = -1
        self._newest_tag = 0
        self._names: dict[int, str] = {}
        self._ids_by_key: dict[str, list[int]] = {}
        #: tag id -> image number -> confidence (millionths)
        self._postings: dict[int, dict[int, int]] = {}
        #: image number -> the ids of its tags
        self._tags_of: dict[int, tuple[int, ...]] = {}

    def match(self, text: str, *, limit: int) -> Matching:
        """Return the best *limit* images for *text*, with every tag that counted.

        Raises:
            StorageError: The database could not be read. Trying again may help.
        """
        terms = self._lemmatizer.terms(text)
        lemma_of = phrases(terms)
        while True:
            with self._lock:
                self._refresh()
                found = self._search(lemma_of, limit)
            ids = self._images.ids_of([seq for seq, _, _ in found])
            if len(ids) == len(found):
                break
            # One of them was deleted since the refresh: the feed says so now.
        matches = tuple(
            Match(image_id=ids[seq], score=score, tags=tags) for seq, score, tags in found
        )
        return Matching(lemmas=tuple(term.lemma for term in terms), matches=matches)

    def refresh(self) -> None:
        """Read what has changed, so that the first query need not. Called at start."""
        with self._lock:
            self._refresh()

    def _search(
        self, lemma_of: Mapping[str, str], limit: int
    ) -> list[tuple[int, int, tuple[MatchedTag, ...]]]:
        met: dict[int, str] = {}
        for phrase, lemma in lemma_of.items():
            for tag_id in self._ids_by_key.get(phrase, ()):
                met.setdefault(tag_id, lemma)
        scores: dict[int, int] = {}
        for tag_id in met:
            for seq, confidence in self._postings.get(tag_id, {}).items():
                scores[seq] = scores.get(seq, 0) + confidence
        best = heapq.nsmallest(limit, scores.items(), key=lambda item: (-item[1], item[0]))
        return [(seq, score, self._explain(seq, met)) for seq, score in best]

    def _explain(self, seq: int, met: Mapping[int, str]) -> tuple[MatchedTag, ...]:
        tags = [
            MatchedTag(
                name=self._names[tag_id],
                lemma=met[tag_id],
                confidence=self._postings[tag_id][seq],
            )
            for tag_id in self._tags_of[seq]
            if tag_id in met
        ]
        return tuple(sorted(tags, key=lambda tag: (-tag.confidence, tag.name)))

    def _refresh(self) -> None:
        if self._watermark < 0:
            watermark, changed = self._tags.watermark(), self._tags.all_postings()
        else:
            watermark, changed = self._tags.changed_since(self._watermark)
        if changed:
            self._learn_names()  # after the postings: every tag in them has its name by now
        for seq, postings in changed:
            for tag_id in self._tags_of.pop(seq, ()):
                del self._postings[tag_id][seq]
            for tag_id, confidence in postings:
                self._postings.setdefault(tag_id, {})[seq] = confidence
            if postings:
                self._tags_of[seq] = tuple(tag_id for tag_id, _ in postings)
        self._watermark = watermark

    def _learn_names(self) -> None:
        keys_by = f"{self._lemmatizer.name}, keys {KEYS_REVISION}"
        names = self._tags.names(after=self._newest_tag, keys_by=keys_by)
        unknown = [tag for tag in names if tag.keys is None]
        computed = self._lemmatizer.keys_of_all([tag.name for tag in unknown])
        new = {tag.id: keys for tag, keys in zip(unknown, computed, strict=True)}
        if new:
            try:
                self._tags.set_keys(new, keys_by=keys_by)
            except StorageError as error:  # kept for the next start only; matching needs no disk
                logger.warning("matcher.keys_not_kept", extra={"error": str(error)})
        for tag in names:
            self._names[tag.id] = tag.name
            for key in new[tag.id] if tag.keys is None else tag.keys:
                self._ids_by_key.setdefault(key, []).append(tag.id)
            self._newest_tag = tag.id
