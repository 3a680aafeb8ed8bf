"""Matches and outcomes for tests of queries, and queries that have come some way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storage.query_records import GivenUp, Match, Matched, MatchedTag, Unmatched
from tests.fakes import START
from tests.store import attempt

if TYPE_CHECKING:
    from storage.query_records import Delivered, Query, QueryLease, RetryAt
    from tests.store import Store

UNMATCHED: Final = Matched(lemmas=("dog",), match=None, at=START)
MATCHED: Final = Matched(
    lemmas=("hot", "dog", "é\u2028"),
    match=Match(
        image_id="img_1",
        score=2_000_001,
        tags=(
            MatchedTag(name="dog", lemma="dog", confidence=1_000_000),
            MatchedTag(name="hot dogs", lemma="hot dog", confidence=1_000_000),
            MatchedTag(name="é", lemma="é\u2028", confidence=1),
        ),
    ),
    at=START + 3,
)
GIVEN_UP: Final = GivenUp(reason="ATTEMPTS_EXHAUSTED", message="It was the last.")


def lease_one(store: Store, *, now: int = START) -> QueryLease:
    (lease,) = store.lease(limit=1, now=now)
    return lease


def settled(store: Store, outcome: Delivered | RetryAt | GivenUp, *, matched: bool = True) -> Query:
    """Return a query that was leased and settled once."""
    store.submit()
    lease = lease_one(store)
    if matched:
        assert store.queries.record_match(lease, UNMATCHED)
    assert store.queries.settle(lease, attempt(lease.attempt), outcome, now=START + 50)
    return store.queries.get(lease.id)


def unmatched(store: Store) -> Query:
    """Return a query that ended because nothing matched."""
    store.submit(on_unmatched="END")
    lease = lease_one(store)
    assert store.queries.settle(lease, None, Unmatched(matched=UNMATCHED), now=START + 50)
    return store.queries.get(lease.id)
