from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import pytest

from storage.errors import QueryNotFoundError, RequestIdReusedError, StorageError
from storage.query_records import Delivered, NotMade, RetryAt
from tests.fakes import START
from tests.storage.querying import GIVEN_UP, MATCHED, UNMATCHED, lease_one, settled
from tests.store import CALLBACK_URL, attempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.query_records import Matched, Query
    from storage.requests import Request
    from tests.store import Store

ID_THAT_IS_NONE: Final = "qry_00000000000000000000000000"


def test_an_accepted_query_is_due_at_once(store: Store) -> None:
    query = store.submit("two dogs", url=CALLBACK_URL)

    assert query == store.queries.get(query.id)
    assert ("two dogs", CALLBACK_URL, "QUEUED", START, START, None, ()) == (
        query.text,
        query.callback_url,
        query.state,
        query.created_at,
        query.due_at,
        query.ended_at,
        query.attempts,
    )
    assert query.matched is None
    assert query.id.startswith("qry_")
    assert START == store.next_due_at()


def test_a_query_of_an_unknown_key_is_refused(store: Store) -> None:
    with pytest.raises(StorageError):
        store.queries.submit(
            key_id="key_0",
            text="dog",
            callback_url="",
            destination="http://receiver:80",
            give_up_after=None,
            request=None,
            now=START,
        )

    assert 0 == store.count("query")


def submit(store: Store, request: Request, text: str = "dog") -> tuple[Query, bool]:
    return store.queries.submit(
        key_id=request.key_id,
        text=text,
        callback_url=CALLBACK_URL,
        destination="http://receiver:80",
        give_up_after=None,
        request=request,
        now=START,
    )


def test_the_same_request_is_accepted_once(store: Store) -> None:
    request = store.request()
    (first, created), (again, created_again) = submit(store, request), submit(store, request)

    assert (True, False) == (created, created_again)
    assert first == again
    assert (1, 1) == (store.count("query"), store.count("request"))


def test_a_repeated_request_tells_how_its_query_stands_now(store: Store) -> None:
    request = store.request()
    submit(store, request)
    store.queries.settle(lease_one(store), attempt(1), Delivered(), now=START)

    assert "DELIVERED" == submit(store, request)[0].state
    assert store.next_due_at() is None


def test_a_request_id_of_another_request_is_refused(store: Store) -> None:
    submit(store, store.request("r1", of=b"x"))
    with pytest.raises(RequestIdReusedError, match="'r1'"):
        submit(store, store.request("r1", of=b"y"), "cat")

    assert (1, 1) == (store.count("query"), store.count("request"))


def test_a_request_id_of_an_upload_cannot_be_a_querys(store: Store) -> None:
    store.add_image(request=store.request("r1", of=b"upload"))
    with pytest.raises(RequestIdReusedError):
        submit(store, store.request("r1", of=b"query"))

    assert 0 == store.count("query")


def test_another_keys_request_id_is_another_one(store: Store) -> None:
    first, _ = submit(store, store.request("r1", of=b"x", key="alice"))
    second, _ = submit(store, store.request("r1", of=b"y", key="bob"))

    assert first.id != second.id


def test_there_is_no_query_with_an_unknown_id(store: Store) -> None:
    with pytest.raises(QueryNotFoundError):
        store.queries.get(ID_THAT_IS_NONE)
    with pytest.raises(QueryNotFoundError):
        store.queries.cancel(ID_THAT_IS_NONE, now=START)
    with pytest.raises(QueryNotFoundError):
        store.queries.redeliver(ID_THAT_IS_NONE, now=START)


def test_queries_are_leased_longest_due_first_and_only_when_due(store: Store) -> None:
    for due in (3, 1, 2):
        store.submit(f"{due}", now=START + due)

    def leased(limit: int, now: int) -> list[str]:
        return [lease.text for lease in store.lease(limit=limit, now=START + now)]

    assert [] == leased(9, 0)
    assert ["1"] == leased(1, 2)
    assert START + 2 == store.next_due_at()
    assert ["2", "3"] == leased(9, 3)
    assert [] == leased(9, 3)
    assert store.next_due_at() is None


def test_queries_due_at_the_same_time_are_leased_in_the_order_they_came(store: Store) -> None:
    for number in range(4):
        store.submit(f"{number}")

    assert ["0", "1", "2"] == [lease.text for lease in store.lease(limit=3, now=START)]


def test_a_lease_brings_all_that_the_work_needs(store: Store) -> None:
    query = store.submit("hot dogs", give_up_after=60_000)
    lease = lease_one(store)

    assert (query.seq, query.id, store.key(), "hot dogs", CALLBACK_URL, None, 1, 1) == (
        lease.seq,
        lease.id,
        lease.key_id,
        lease.text,
        lease.callback_url,
        lease.matched,
        lease.attempt,
        lease.attempt_of_cycle,
    )
    assert START + 60_000 == lease.give_up_at


def test_a_leased_query_is_not_due(store: Store) -> None:
    query = store.submit()
    lease_one(store)

    assert store.queries.get(query.id).due_at is None
    assert "QUEUED" == store.queries.get(query.id).state


@pytest.mark.parametrize("matched", [MATCHED, UNMATCHED], ids=["an image", "none"])
def test_a_match_stands_for_all_attempts(store: Store, matched: Matched) -> None:
    query = store.submit()
    lease = lease_one(store)

    assert store.queries.record_match(lease, matched)
    assert ("DELIVERING", matched) == (
        store.queries.get(query.id).state,
        store.queries.get(query.id).matched,
    )
    store.queries.settle(lease, attempt(1), RetryAt(due_at=START + 5), now=START)
    assert matched == lease_one(store, now=START + 5).matched


def test_a_match_can_be_replaced_while_the_lease_is_held(store: Store) -> None:
    query = store.submit()
    lease = lease_one(store)
    store.queries.record_match(lease, MATCHED)

    assert store.queries.record_match(lease, UNMATCHED)
    assert UNMATCHED == store.queries.get(query.id).matched


def test_a_delivered_query_has_ended(store: Store) -> None:
    query = settled(store, Delivered())

    assert ("DELIVERED", START + 50, None, None) == (
        query.state,
        query.ended_at,
        query.due_at,
        query.failure_reason,
    )
    assert (attempt(1),) == query.attempts


def test_a_query_to_be_tried_again_is_due_then(store: Store) -> None:
    query = settled(store, RetryAt(due_at=START + 5000))

    assert ("DELIVERING", START + 5000, None) == (query.state, query.due_at, query.ended_at)
    assert [] == store.lease(limit=1, now=START + 4999)
    lease = lease_one(store, now=START + 5000)
    assert (2, 2) == (lease.attempt, lease.attempt_of_cycle)


def test_a_query_that_is_given_up_tells_why(store: Store) -> None:
    query = settled(store, GIVEN_UP)

    assert ("FAILED", START + 50, GIVEN_UP.reason, GIVEN_UP.message) == (
        query.state,
        query.ended_at,
        query.failure_reason,
        query.failure_message,
    )


def test_a_lease_may_end_without_an_attempt(store: Store) -> None:
    query = store.submit()
    store.queries.settle(lease_one(store), None, GIVEN_UP, now=START)

    assert ("FAILED", ()) == (
        store.queries.get(query.id).state,
        store.queries.get(query.id).attempts,
    )


def test_a_lease_handed_back_uses_up_no_attempt_of_the_schedule(store: Store) -> None:
    store.submit()
    for handed_back in range(3):
        lease = lease_one(store)

        assert (handed_back + 1, 1, False) == (
            lease.attempt,
            lease.attempt_of_cycle,
            lease.is_retry,
        )
        assert store.queries.settle(lease, None, NotMade(due_at=START), now=START)
    assert [False] == [queue.retries for queue in store.queries.waiting()]

    store.queries.settle(lease_one(store), attempt(4), RetryAt(due_at=START), now=START)
    lease = lease_one(store)
    store.queries.settle(lease, None, NotMade(due_at=START + 1), now=START)
    again = lease_one(store, now=START + 1)

    assert (5, 2) == (lease.attempt, lease.attempt_of_cycle)
    assert (6, 2, True) == (again.attempt, again.attempt_of_cycle, again.is_retry)


def test_an_attempt_is_kept_as_it_was(store: Store) -> None:
    settled(store, RetryAt(due_at=START))
    lease = lease_one(store)
    made = attempt(2, failure="TIMEOUT", at=START + 9)
    store.queries.settle(lease, made, Delivered(), now=START)

    assert (attempt(1), made) == store.queries.get(lease.id).attempts


def test_a_lease_settles_once(store: Store) -> None:
    query = store.submit()
    lease = lease_one(store)

    assert store.queries.settle(lease, attempt(1), RetryAt(due_at=START), now=START)
    assert not store.queries.settle(lease, attempt(1), Delivered(), now=START)
    assert not store.queries.record_match(lease, MATCHED)
    assert "QUEUED" == store.queries.get(query.id).state
    assert 1 == store.count("attempt")


def test_pages_go_from_newest_to_oldest_and_can_be_of_one_state(store: Store) -> None:
    made = [store.submit(f"{number}").id for number in range(5)]
    for number in (1, 3):
        store.queries.cancel(made[number], now=START)

    def listed(state: str | None, size: int) -> list[str]:
        pages = [store.page(before=None, size=size, state=state)]
        while pages[-1]:
            pages.append(store.page(before=pages[-1][-1].seq, size=size, state=state))
        return [query.text for query in itertools.chain(*pages)]

    assert ["4", "3", "2", "1", "0"] == listed(None, 2) == listed(None, 5)
    assert ["3", "1"] == listed("CANCELLED", 1)
    assert ["4", "2", "0"] == listed("QUEUED", 2)
    assert [] == listed("FAILED", 1)


def test_a_key_reads_and_changes_its_own_queries_only(store: Store) -> None:
    mine, another = (store.submit(key=name) for name in ("a", "b"))
    assert mine == store.queries.get(mine.id, key_id=mine.key_id)

    calls: list[Callable[[str], Query]] = [
        lambda id_: store.queries.get(id_, key_id=mine.key_id),
        lambda id_: store.queries.cancel(id_, key_id=mine.key_id, now=START),
        lambda id_: store.queries.redeliver(id_, key_id=mine.key_id, now=START),
    ]
    for query_id, call in itertools.product((another.id, ID_THAT_IS_NONE), calls):
        with pytest.raises(QueryNotFoundError, match=r"^there is no query with this id$"):
            call(query_id)
    assert another == store.queries.get(another.id)
    assert "CANCELLED" == store.queries.cancel(mine.id, key_id=mine.key_id, now=START).state


def test_pages_of_a_key_hold_its_queries_only(store: Store) -> None:
    made = [store.submit(key="ab"[number % 2]) for number in range(6)]
    store.queries.cancel(made[0].id, now=START)
    store.queries.cancel(made[1].id, now=START)

    def listed(state: str | None, before: int | None = None) -> list[int]:
        found = store.page(before=before, size=9, state=state, key_id=made[0].key_id)
        return [query.seq for query in found]

    assert [made[4].seq, made[2].seq, made[0].seq] == listed(None)
    assert [made[2].seq, made[0].seq] == listed(None, before=made[4].seq)
    assert [made[4].seq, made[2].seq] == listed("QUEUED")
    assert [made[0].seq] == listed("CANCELLED", before=made[2].seq)


def test_a_page_tells_the_attempts_of_each_query(store: Store) -> None:
    first = settled(store, Delivered())
    second = settled(store, GIVEN_UP)

    assert [second, first] == store.page(before=None, size=9, state=None)
    assert [1, 1] == [len(query.attempts) for query in store.page(before=None, size=9, state=None)]


def test_changes_of_a_query_wake_those_who_watch_it(store: Store) -> None:
    query = store.submit()
    lease = lease_one(store)
    with store.queries.changes.watch(query.id) as changed:
        for change in (
            lambda: store.queries.record_match(lease, UNMATCHED),
            lambda: store.queries.settle(lease, None, RetryAt(due_at=START), now=START),
            lambda: store.queries.cancel(query.id, now=START),
            lambda: store.queries.redeliver(query.id, now=START),
        ):
            changed.clear()
            change()

            assert changed.is_set()


@pytest.mark.parametrize(
    "change",
    [
        "state = 'ODD'",
        "state = 'DELIVERING'",  # not matched
        "state = 'DELIVERED'",  # not ended, and due
        "state = 'DELIVERED', due_at = NULL",  # not ended
        "state = 'CANCELLED', ended_at = 1",  # still due
        "state = 'FAILED', ended_at = 1, due_at = NULL",  # without a reason
        "failure_reason = 'TIMEOUT'",  # not failed
        "on_unmatched = 'LATER'",
        "state = 'UNMATCHED', ended_at = 1, due_at = NULL",  # not matched
        # its caller asked for a callback
        "state = 'UNMATCHED', ended_at = 1, due_at = NULL, matched_at = 1",
        # an image matches
        (
            "state = 'UNMATCHED', ended_at = 1, due_at = NULL, matched_at = 1,"
            " on_unmatched = 'END', match_image_id = 'img_1'"
        ),
        # nothing matches, and its caller asked for an end
        "state = 'DELIVERING', matched_at = 1, on_unmatched = 'END'",
        "ended_at = 1",
        "leased_at = 1",  # both due and leased
        "due_at = NULL",  # neither
        "lemmas = '[\"dog'",
        "match_tags = 'none'",
        "key_id = 'key_0'",
        "attempt = 'two'",
    ],
)
def test_a_waiting_query_cannot_be_put_into_a_state_that_makes_no_sense(
    store: Store, change: str
) -> None:
    query = store.submit()
    with pytest.raises(StorageError):
        store.database.write(
            lambda connection: connection.execute(f"UPDATE query SET {change}").rowcount
        )

    assert query == store.queries.get(query.id)


def test_a_number_of_attempt_is_recorded_once(store: Store) -> None:
    settled(store, RetryAt(due_at=START))
    lease = lease_one(store)
    with pytest.raises(StorageError):
        store.queries.settle(lease, attempt(1), Delivered(), now=START)

    # The settling was undone with it.
    assert ("DELIVERING", None) == (
        store.queries.get(lease.id).state,
        store.queries.get(lease.id).due_at,
    )
    assert store.queries.settle(lease, attempt(2), Delivered(), now=START)
