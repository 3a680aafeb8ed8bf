"""Databases of earlier versions open, and what was queued in them is delivered or ends."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import sqlite_utils
from pysqlite3 import dbapi2 as sqlite3

from storage import schema
from storage.database import Database
from tests.fakes import START
from tests.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from storage.query_records import Waiting


def an_old_database(folder: Path, *, before: str) -> None:
    """Make a database as it was before a migration, with a key and three queries."""
    with closing(sqlite3.connect(folder / "picback.db", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        schema.migrations.apply(sqlite_utils.Database(connection), stop_before=before)
        connection.execute(
            "INSERT INTO api_key (id, name, scopes, created_at) VALUES ('key_1', 'k', '[]', 0)"
        )
        connection.execute("INSERT INTO destination (name) VALUES ('http://a.test:80')")
        for number, (cycle_start, state, due_at, ended_at) in enumerate(
            [(0, "QUEUED", START, None), (1, "QUEUED", START, None), (0, "CANCELLED", None, 1)]
        ):
            connection.execute(
                "INSERT INTO query (id, key_id, text, callback_url, destination_id, state, due_at,"
                " attempt, cycle_start, created_at, ended_at)"
                " VALUES (?, 'key_1', 'dog', 'http://a.test/', 1, ?, ?, ?, ?, ?, ?)",
                (f"qry_{number}", state, due_at, cycle_start, cycle_start, START, ended_at),
            )


def test_queries_that_were_queued_before_they_had_deadlines_get_one(tmp_path: Path) -> None:
    an_old_database(tmp_path, before="m0008_scheduling")
    with closing(Database.own(tmp_path)) as database:
        store = Store(database)
        cycles = dict(database.read("SELECT id, cycle_at FROM query"))
        leased = store.lease(limit=5)

    assert START == cycles["qry_0"]
    assert cycles["qry_1"] != START  # was redelivered, no one knows when: from now on
    assert ["qry_0", "qry_1"] == [lease.id for lease in leased]


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
