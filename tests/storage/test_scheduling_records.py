"""What the scheduler learns from storage: queries that begin to wait, and what operators changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fakes import START
from tests.store import Store

if TYPE_CHECKING:
    from storage.database import Database
    from storage.query_records import Waiting


def test_who_listens_hears_of_every_query_that_begins_to_wait(database: Database) -> None:
    store = Store(database)
    heard: list[Waiting] = []
    store.queries.subscribe(heard.append)
    query = store.submit(give_up_after=5)
    store.queries.cancel(query.id, now=START)
    store.queries.redeliver(query.id, now=START + 1)

    assert [(START, START + 5), (START + 1, START + 6)] == [
        (each.queue.due_at, each.give_up_at) for each in heard
    ]
    assert {(store.key(), query.destination, False)} == {
        (each.queue.key_id, each.queue.destination, each.queue.retries) for each in heard
    }


def test_what_an_operator_did_stands_against_what_the_server_decided_before(
    database: Database,
) -> None:
    store = Store(database)
    store.submit()
    seen = store.breakers.last_operator_change()
    assert store.breakers.hold("https://receiver.test:443")
    assert store.breakers.close("https://receiver.test:443")
    ((number, breaker),) = store.breakers.operator_changes(after=seen)
    opened = type(breaker)(destination=1, state="OPEN", probe_at=START, openings=1)

    store.breakers.save(opened, seen=seen)
    assert [] == store.breakers.not_closed()
    store.breakers.save(opened, seen=number)
    assert [opened] == store.breakers.not_closed()
    assert [] == store.breakers.operator_changes(after=number)
