"""Which image a text means: the one whose matching tags have the highest sum.

A tag matches when one of its keys is a word or phrase of the text; it counts once. Equal
sums go to the image stored first. Sums are of integers, so they are exact and the same
on every path. What a tag's keys are, and a text's phrases, is `analysis.lemmas`' business.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.lemmas import KEYS_REVISION, phrases
from dispatcher.index import TagIndex
from storage.errors import StorageError
from storage.query_records import Match, MatchedTag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analysis.lemmas import Lemmatizer
    from dispatcher.index import Found
    from storage.images import Images
    from storage.tags import Tags

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """A text's lemmas in order, and the images that it matches, best first."""

    lemmas: tuple[str, ...]
    matches: tuple[Match, ...]


class Matcher:
    """Matches texts with all tags of all images, as fresh as the last commit at every call.

    Safe to use from any thread. Time and memory: docs/performance.md.
    """

    def __init__(
        self, *, tags: Tags, images: Images, lemmatizer: Lemmatizer, index: TagIndex | None = None
    ) -> None:
        self._tags = tags
        self._images = images
        self._lemmatizer = lemmatizer
        self._index = index or TagIndex(tags)
        #: Held from a refresh to the search, so that both are of one moment.
        self._lock = threading.Lock()
        self._newest_tag = 0
        self._names: dict[int, str] = {}
        self._ids_by_key: dict[str, list[int]] = {}

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
                met = self._tags_met(lemma_of)
                found = self._index.search(met, limit)
            ids = self._images.ids_of([image.seq for image in found])
            if len(ids) == len(found):
                break
            # One of them was deleted since the refresh: the feed says so now.
        matches = tuple(
            Match(image_id=ids[image.seq], score=image.score, tags=self._explained(image, met))
            for image in found
        )
        return Matching(lemmas=tuple(term.lemma for term in terms), matches=matches)

    def refresh(self) -> None:
        """Read what has changed, so that the first query need not. Called at start."""
        with self._lock:
            self._refresh()

    def close(self) -> None:
        """Return when nothing is being written."""
        self._index.close()

    def _refresh(self) -> None:
        if self._index.refresh():
            self._learn_names()  # after the postings: every tag in them has its name by now

    def _tags_met(self, lemma_of: Mapping[str, str]) -> dict[int, str]:
        """Return the tags that the text meets, with the words of the text that they met."""
        met: dict[int, str] = {}
        for phrase, lemma in lemma_of.items():
            for tag_id in self._ids_by_key.get(phrase, ()):
                met.setdefault(tag_id, lemma)
        return met

    def _explained(self, image: Found, met: Mapping[int, str]) -> tuple[MatchedTag, ...]:
        tags = [
            MatchedTag(name=self._names[tag_id], lemma=met[tag_id], confidence=confidence)
            for tag_id, confidence in image.confidences.items()
        ]
        return tuple(sorted(tags, key=lambda tag: (-tag.confidence, tag.name)))

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
