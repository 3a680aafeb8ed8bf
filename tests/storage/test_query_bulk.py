"""Changes of many queries do to each what `cancel` and `redeliver` do, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from storage.errors import RedeliveryLimitError
from storage.queries import MAX_ATTEMPTS_KEPT
from storage.query_bulk import MAX_RECENT_ATTEMPTS, RECENT_MS
from storage.query_filters import QueryFilter
from storage.query_records import Delivered, RetryAt
from tests.fakes import START
from tests.storage.querying import GIVEN_UP, UNMATCHED, lease_one, settled, unmatched
from tests.store import attempt

if TYPE_CHECKING:
    from storage.query_records import GivenUp, Query
    from tests.store import Store

LATER = START + 1_000_000
OPEN = QueryFilter(states=("QUEUED", "DELIVERING"))


def _row(store: Store, query: Query) -> tuple[Any, ...]:
    """Return all columns of a query that do not tell it from another."""
    columns = [name for _, name, *_ in store.database.read("PRAGMA table_info(query)")]
    kept = [name for name in columns if name not in ("seq", "id")]
    (row,) = store.database.read(f"SELECT {', '.join(kept)} FROM query WHERE seq = ?", (query.seq,))
    return tuple(row)


def _in_state(store: Store, state: str) -> Query:
    match state:
        case "QUEUED":
            return store.submit()
        case "leased":
            store.submit()
            return store.queries.get(lease_one(store).id)
        case "CANCELLED":
            return store.queries.cancel(store.submit().id, now=START + 50)
        case "UNMATCHED":
            return unmatched(store)
        case "never matched":
            return settled(store, GIVEN_UP, matched=False)
    outcomes: dict[str, Delivered | RetryAt | GivenUp] = {
        "DELIVERING": RetryAt(due_at=START + 100),
        "DELIVERED": Delivered(),
        "FAILED": GIVEN_UP,
    }
    return settled(store, outcomes[state])


@pytest.mark.parametrize("state", ["QUEUED", "DELIVERING", "leased"])
def test_cancelling_many_does_what_cancelling_one_does(store: Store, state: str) -> None:
    one, other = _in_state(store, state), _in_state(store, state)
    store.queries.cancel(one.id, now=LATER)
    with store.queries.changes.watch(other.id) as changed:
        done = store.queries.bulk.cancel([one.seq, other.seq], OPEN, now=LATER)

    assert [other.id] == [each.id for each in done]  # the other was CANCELLED already
    assert _row(store, one) == _row(store, other)
    assert changed.is_set()


@pytest.mark.parametrize(
    "state", ["DELIVERED", "FAILED", "CANCELLED", "UNMATCHED", "never matched"]
)
def test_redelivering_many_does_what_redelivering_one_does(store: Store, state: str) -> None:
    one, other = _in_state(store, state), _in_state(store, state)
    where = QueryFilter(states=(other.state,))
    store.queries.redeliver(one.id, now=LATER)
    with store.queries.changes.watch(other.id) as changed:
        done = store.queries.bulk.redeliver([one.seq, other.seq], where, now=LATER)

    assert [(other.id, other.key_id, other.destination)] == [
        (each.id, each.key_id, each.destination) for each in done
    ]
    assert _row(store, one) == _row(store, other)
    assert changed.is_set()


def test_what_left_the_filter_since_it_was_found_is_not_changed(store: Store) -> None:
    failed = settled(store, GIVEN_UP)
    where = QueryFilter(states=("FAILED",), failure_reason="DEADLINE_PASSED")
    delivered = settled(store, Delivered())

    assert [] == store.queries.bulk.redeliver([failed.seq, delivered.seq], where, now=LATER)
    assert [] == store.queries.bulk.cancel([failed.seq, delivered.seq], OPEN, now=LATER)
    assert failed == store.queries.get(failed.id)
    assert delivered == store.queries.get(delivered.id)


def test_how_many_of_a_key_are_not_final_stays_known(store: Store) -> None:
    store.queries.count_queued()
    seqs = [store.submit(key=key).seq for key in ("one", "one", "two")]

    def counts() -> list[int]:
        return [store.queries.queued.count(store.key(key)) for key in ("one", "two")]

    store.queries.bulk.cancel(seqs, OPEN, now=LATER)
    after_cancel = counts()
    store.queries.bulk.redeliver(seqs[1:], QueryFilter(states=("CANCELLED",)), now=LATER)

    assert ([0, 0], [1, 1]) == (after_cancel, counts())


def _fail_often(store: Store, times: int, *, every_ms: int = 1000) -> Query:
    """Return a query that was redelivered until it had *times* attempts, one each."""
    query = store.submit()
    for number in range(times):
        now = START + number * every_ms
        lease = lease_one(store, now=now)
        if number == 0:
            store.queries.record_match(lease, UNMATCHED)
        made = attempt(lease.attempt, failure="TIMEOUT", at=now)
        assert store.queries.settle(lease, made, GIVEN_UP, now=now)
        if number < times - 1:
            store.queries.redeliver(query.id, now=now + every_ms)
    return store.queries.get(query.id)


def test_a_query_is_not_redelivered_more_often_than_receivers_can_bear(store: Store) -> None:
    query = _fail_often(store, MAX_RECENT_ATTEMPTS)
    where = QueryFilter(states=("FAILED",))
    now = START + 1000 * MAX_RECENT_ATTEMPTS

    with pytest.raises(RedeliveryLimitError) as caught:
        store.queries.redeliver(query.id, now=now)
    skipped = store.queries.bulk.redeliver([query.seq], where, now=now)
    unchanged = store.queries.get(query.id)
    at_last = now + caught.value.retry_after_ms
    too_early = store.queries.bulk.redeliver([query.seq], where, now=at_last - 1)

    assert START + RECENT_MS == at_last  # the first of the ten started a minute ago
    assert ([], [], query) == (skipped, too_early, unchanged)
    assert "FAILED" != store.queries.redeliver(query.id, now=at_last).state


def test_a_clock_that_was_set_back_forbids_no_redelivery(store: Store) -> None:
    query = _fail_often(store, MAX_RECENT_ATTEMPTS)

    assert "FAILED" != store.queries.redeliver(query.id, now=START - 86_400_000).state


def test_of_many_attempts_the_newest_are_kept(store: Store) -> None:
    total = MAX_ATTEMPTS_KEPT + 3
    query = _fail_often(store, total, every_ms=RECENT_MS)

    assert list(range(4, total + 1)) == [each.number for each in query.attempts]
    assert total == query.latest_attempt_number
    assert MAX_ATTEMPTS_KEPT == store.count("attempt")


def test_of_attempts_that_an_earlier_version_kept_the_newest_are_shown(store: Store) -> None:
    query = settled(store, Delivered())
    store.database.write(
        lambda connection: connection.executemany(
            "INSERT INTO attempt (query_seq, number, started_at, latency_ms) VALUES (?, ?, 0, 0)",
            [(query.seq, number) for number in range(2, 171)],
        )
    )
    store.database.write(
        lambda connection: connection.execute("UPDATE query SET attempt = 170").fetchall()
    )

    shown = store.queries.get(query.id)
    assert list(range(71, 171)) == [each.number for each in shown.attempts]
    assert 170 == shown.latest_attempt_number
