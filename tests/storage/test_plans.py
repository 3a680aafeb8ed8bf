"""No statement that runs again and again looks at every row of a table that grows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from storage.images import TaggingFailed, TagLater, TagsFound
from storage.query_filters import QueryFilter
from storage.query_records import Delivered, RetryAt
from tests.fakes import START
from tests.storage.querying import GIVEN_UP, MATCHED, lease_one
from tests.store import DESTINATION, attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.store import Store


#: Tables with a row or two for each API key.
SMALL = ("api_key", "signing_secret")


@contextmanager
def explained(store: Store) -> Iterator[dict[str, list[str]]]:
    """Fill a dictionary with the statements that the block runs: statement -> SQLite's plan."""
    plans: dict[str, list[str]] = {}
    read = store.database.read
    written: list[str] = []

    def explain(sql: str, parameters: Any = ()) -> None:
        plans[sql] = [row[3] for row in read(f"EXPLAIN QUERY PLAN {sql}", parameters)]

    def read_and_explain(sql: str, parameters: Any = ()) -> list[Any]:
        explain(sql, parameters)
        return read(sql, parameters)

    store.database.read = read_and_explain  # type: ignore[method-assign]

    def trace(cursor: Any, _sql: str, _bindings: Any) -> bool:
        written.append(cursor.expanded_sql)
        return True

    store.database.write(lambda connection: setattr(connection, "exec_trace", trace))
    yield plans
    store.database.write(lambda connection: setattr(connection, "exec_trace", None))
    for sql in written:
        if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            explain(sql)


def scans(plans: dict[str, list[str]]) -> dict[str, str]:
    """Return the statements that look at every row of a table that grows."""
    return {
        sql: step
        for sql, steps in plans.items()
        for step in steps
        if step.startswith("SCAN") and " INDEX " not in step and "json_each" not in step
        if not step.endswith((*SMALL, "CONSTANT ROW", "waiting", "queue"))  # one row a destination
    }


def test_the_way_of_an_image_goes_by_indexes(store: Store) -> None:
    with explained(store) as plans:
        image = store.add_image(b"a", tags={"dog": 1}, tag_it=True, request=store.request())
        store.add_image(b"b", tag_it=True)
        store.add_image(b"c", tag_it=True)
        one, two, three = store.images.lease_for_tagging(limit=3, now=START)
        store.images.settle_tagging(
            [
                (one, TagsFound(tags={"cat": 1}, model="m/1")),
                (two, TaggingFailed(reason="TAGGER_REJECTED", message="No.")),
                (three, TagLater(due_at=START)),
            ]
        )
        store.images.next_tagging_due_at()
        store.images.content(image.seq)
        store.images.ids_of([image.seq])
        store.images.update_tags(image.id, set_tags={"sky": 1}, remove=["cat"])
        store.tags.changed_since(0)
        store.tags.set_keys({1: ["dog"]}, keys_by="en 1")
        store.tags.names(after=1, keys_by="en 1")
        store.images.page(before=2, size=1)
        store.images.void_leases(max_interruptions=5, now=START)
        store.images.delete(image.id)

    assert len(plans) > 20
    assert {} == scans(plans)


def test_the_way_of_a_query_goes_by_indexes(store: Store) -> None:
    with explained(store) as plans:
        query = store.submit()
        lease = lease_one(store)
        store.queries.record_match(lease, MATCHED)
        store.queries.settle(lease, attempt(1), RetryAt(due_at=START), now=START)
        store.queries.settle(lease_one(store), attempt(2), Delivered(), now=START)
        store.queries.redeliver(query.id, now=START)
        store.queries.settle(lease_one(store), attempt(3), GIVEN_UP, now=START)
        store.queries.redeliver(query.id, now=START)
        store.queries.cancel(query.id, now=START)
        store.next_due_at()
        store.queries.deadlines.next_at(lifetime=1)
        store.queries.deadlines.expire(now=START, lifetime=1, wall_now=START, limit=1)
        store.queries.deadlines.newest()
        store.breakers.operator_changes(after=0)
        store.breakers.last_operator_change()
        store.breakers.hold("http://a.test:80")
        store.queries.void_leases(max_attempts=3, now=START)
        # Without either it begins at the newest and stops after a page: a scan, but no long one.
        store.page(before=5, size=1, state=None)
        store.page(before=5, size=1, state="FAILED")
        store.page(before=None, size=1, state="FAILED")
        store.page(before=5, size=1, state=None, key_id=query.key_id)
        store.page(before=5, size=1, state="FAILED", key_id=query.key_id)
        store.queries.get(query.id, key_id=query.key_id)
        store.queries.cancel(query.id, key_id=query.key_id, now=START)
        store.api_keys.signing_secrets(query.key_id, now=START)

    assert len(plans) > 20
    assert {} == scans(plans)


KEY, FAILED, THERE = ("key_id", "key_1"), ("states", ("FAILED",)), ("destination", DESTINATION)
OPEN = ("states", ("QUEUED", "DELIVERING"))


@pytest.mark.parametrize("before", [None, 5])
@pytest.mark.parametrize(
    ("conditions", "step"),
    [
        ([], "PRIMARY KEY ("),
        ([KEY], "query_key (key_id=? AND "),
        ([FAILED], "query_state (state=? AND "),
        ([OPEN], "query_state (state=? AND "),
        ([KEY, FAILED], "query_key_state (key_id=? AND state=? AND "),
        ([KEY, OPEN], "query_key_state (key_id=? AND state=? AND "),
        ([THERE], "query_destination (destination_id=? AND "),
        ([KEY, THERE], "query_destination (destination_id=? AND "),
        ([THERE, ("states", ("DELIVERED",))], "query_destination (destination_id=? AND "),
        ([THERE, FAILED], "query_state (state=? AND "),
        ([KEY, THERE, FAILED], "query_key_state (key_id=? AND state=? AND "),
        (
            [KEY, FAILED, ("failure_reason", "TIMEOUT")],
            "query_key_state (key_id=? AND state=? AND ",
        ),
        ([KEY, ("created_before", START)], "query_key (key_id=? AND "),
        ([("created_after", START)], "PRIMARY KEY ("),
    ],
)
def test_a_search_examines_one_range_of_the_index_that_its_bound_is_counted_in(
    store: Store, conditions: list[tuple[str, Any]], step: str, before: int | None
) -> None:
    """As fast for a key with few queries among millions as for the one that has the millions."""
    store.submit()
    with explained(store) as plans:
        store.page(before=before, size=1, **dict(conditions))
        store.queries.search(QueryFilter(**dict(conditions))).count(before=before)

    searches = [steps for sql, steps in plans.items() if "seq BETWEEN" in sql]
    assert len(searches) >= 3  # where to stop, a page, and a count
    for first, *others in searches:
        assert first.startswith("SEARCH query USING")
        assert f"{step}{'rowid' if 'PRIMARY' in step else 'seq'}>?" in first
        # Of two states at most what was examined is sorted.
        assert others in ([], ["USE TEMP B-TREE FOR ORDER BY"] if OPEN in conditions else [])
    assert {"SCAN (subquery-1)"} >= set(scans(plans).values())  # of ids, with a LIMIT


def test_a_scan_is_seen_as_one(store: Store) -> None:
    sql = "SELECT id FROM query WHERE text = ?"
    with explained(store) as plans:
        store.database.read(sql, ("dog",))

    assert {sql: "SCAN query"} == scans(plans)
