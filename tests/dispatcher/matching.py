"""Matchers for tests, whose lemmatizer is simple enough to be looked through."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from dispatcher.matcher import Matcher
from tests.fakes import FakeLemmatizer

if TYPE_CHECKING:
    from analysis.lemmas import Lemmatizer
    from dispatcher.index import TagIndex
    from tests.store import Store


def matcher_of(
    store: Store, lemmatizer: FakeLemmatizer | None = None, *, index: TagIndex | None = None
) -> Matcher:
    return Matcher(
        tags=store.tags,
        images=store.images,
        lemmatizer=cast("Lemmatizer", lemmatizer or FakeLemmatizer()),
        index=index,
    )
