"""What storage tells of queries: plain records, and how rows become them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: The columns that `query_from` takes, in its order.
COLUMNS: Final = (
    "seq, id, key_id, text, callback_url, destination_id, state, lemmas, match_image_id, match_score, match_tags,"
    " matched_at, due_at, failure_reason, failure_message, created_at, ended_at, attempt"
)
#: The columns that `lease_from` takes, in its order.
LEASE_COLUMNS: Final = (
    "seq, id, key_id, text, callback_url, destination_id, lemmas, match_image_id, match_score, match_tags,"
    " matched_at, attempt, cycle_start, cycle_at, give_up_at, on_unmatched"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedTag:
    """A tag that a text matched, by which lemma or phrase, and what it adds (millionths)."""

    name: str
    lemma: str
    confidence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The image that won; score is the sum of its tags' confidences (millionths)."""

    image_id: str
    score: int
    tags: tuple[MatchedTag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """What matching found, once and for all attempts: perhaps no image."""

    lemmas: tuple[str, ...]
    match: Match | None
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try to call back. A failure_reason of None means that it was delivered."""

    number: int
    started_at: int
    latency_ms: int
    #: 0 when there was no answer.
    http_status: int = 0
    failure_reason: str | None = None
    failure_message: str | None = None
    #: The beginning of the answer's body, for the submitting key's eyes only.
    excerpt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query as it stands, with the attempts that are kept, oldest first."""

    seq: int
    id: str
    key_id: str
    text: str
    callback_url: str
    #: The number of its scheme, host and port.
    destination: int
    state: str
    matched: Matched | None
    due_at: int | None
    failure_reason: str | None
    failure_message: str | None
    created_at: int
    ended_at: int | None
    #: In flight or ended; 0 before the first.
    latest_attempt_number: int
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLease:
    """The right of one thread to work on one query, proved by its number of attempt."""

    seq: int
    id: str
    key_id: str
    text: str
    callback_url: str
    destination: int
    #: None until matching has been recorded.
    matched: Matched | None
    #: From 1 over the query's whole life, counted when leased; never used twice.
    attempt: int
    #: From 1 since the query was submitted or redelivered: its place in the schedule.
    attempt_of_cycle: int
    #: When the schedule began: the query was submitted or redelivered.
    cycle_at: int
    give_up_at: int | None
    #: Whether the query ends without a callback when no image matches.
    ends_unmatched: bool

    @property
    def is_retry(self) -> bool:
        """Whether the query was tried before in this cycle: from which queue it came."""
        return self.attempt_of_cycle > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DueQueue:
    """The queries of one API key for one destination that wait in one of its two queues."""

    key_id: str
    destination: int
    #: False: queries that were never tried; True: those that failed before.
    retries: bool
    #: When the one that waits longest became, or becomes, due.
    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A query has begun to wait in a queue. Listeners of `Queries.subscribe` get it."""

    queue: DueQueue
    give_up_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """So many queries of one queue may be attempted now."""

    key_id: str
    destination: int
    retries: bool
    count: int
    #: `url_mark` of URLs that are taken only if the queue's head holds no others.
    avoid: frozenset[int] = frozenset()


def url_mark(key_id: str, url: str) -> int:
    """Return a number for *url* as that key calls it, the same while the process lives."""
    return hash((key_id, url))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """What came of a turn."""

    turn: Turn
    #: At most as many as the turn allows.
    leases: tuple[QueryLease, ...]
    #: When the next query of the queue is due; None when no other waits.
    next_due_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAt:
    """Not delivered; the query is due again."""

    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """Not delivered, and not to be tried again."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMade:
    """There was no attempt, and none is used up: the query is due again where it was."""

    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """No image matches, and the caller asked for no callback then: no attempt was made."""

    matched: Matched


#: What a lease ends with.
Settlement: TypeAlias = Delivered | RetryAt | GivenUp | NotMade | Unmatched


def query_from(row: Any, attempts: Sequence[Attempt]) -> Query:
    """Return the query of a *row* of COLUMNS."""
    seq, id_, key_id, text, url, destination, state, lemmas, image_id, score, tags, *rest = row
    matched_at, due_at, failure_reason, failure_message, created_at, ended_at, attempt = rest
    return Query(
        seq=seq,
        id=id_,
        key_id=key_id,
        text=text,
        callback_url=url,
        destination=destination,
        state=state,
        matched=_matched_from(lemmas, image_id, score, tags, matched_at),
        due_at=due_at,
        failure_reason=failure_reason,
        failure_message=failure_message,
        created_at=created_at,
        ended_at=ended_at,
        latest_attempt_number=attempt,
        attempts=tuple(attempts),
    )


def lease_from(row: Any) -> QueryLease:
    """Return the lease of a *row* of LEASE_COLUMNS."""
    seq, id_, key_id, text, url, destination, *rest = row
    lemmas, image_id, score, tags, matched_at, attempt, cycle_start, *rest = rest
    cycle_at, give_up_at, on_unmatched = rest
    return QueryLease(
        seq=seq,
        id=id_,
        key_id=key_id,
        text=text,
        callback_url=url,
        destination=destination,
        matched=_matched_from(lemmas, image_id, score, tags, matched_at),
        attempt=attempt,
        attempt_of_cycle=attempt - cycle_start,
        cycle_at=cycle_at,
        give_up_at=give_up_at,
        ends_unmatched=on_unmatched == "END",
    )


def _matched_from(
    lemmas: str | None, image_id: str | None, score: int, tags: str, at: int
) -> Matched | None:
    if lemmas is None:
        return None
    match = None
    if image_id is not None:
        matched_tags = tuple(
            MatchedTag(name=name, lemma=lemma, confidence=confidence)
            for name, lemma, confidence in json.loads(tags)
        )
        match = Match(image_id=image_id, score=score, tags=matched_tags)
    return Matched(lemmas=tuple(json.loads(lemmas)), match=match, at=at)
