"""Databases of earlier schemas open, keep their rows, and get the constraints of today.

What was queued in them goes on or ends.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest

from analysis.images import Rendition
from storage import schema
from storage.database import Database
from storage.errors import StorageError
from storage.query_records import Delivered, Unmatched
from storage.sqlite_toolkit import Migrations
from tests.fakes import START
from tests.storage.querying import UNMATCHED, lease_one
from tests.store import Store, attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from storage.database import Connection

#: A query in each state that schema 5 knows, by what departs from a new one. The state in which
#: a server leaves what it worked on when it is killed is among them: leased.
ENDED: Final = {"due_at": None, "ended_at": 7}
MATCH: Final = {
    "lemmas": '["dog"]',
    "match_image_id": "img_1",
    "match_score": 900_000,
    "match_tags": '[["dog","dog",900000]]',
    "matched_at": 5,
}
QUERIES: Final[dict[str, dict[str, object]]] = {
    "queued": {},
    "leased": {"due_at": None, "leased_at": 3, "attempt": 1},
    "delivering": {"state": "DELIVERING", "attempt": 1, **MATCH},
    "redelivered": {"attempt": 2, "cycle_start": 2},
    "unmatched but delivered": {"state": "DELIVERED", "matched_at": 5, "lemmas": "[]", **ENDED},
    "delivered": {"state": "DELIVERED", "attempt": 2, "cycle_start": 1, **MATCH, **ENDED},
    "failed": {
        "state": "FAILED",
        "failure_reason": "RECEIVER_GONE",
        "failure_message": "It is gone.",
        "attempt": 1,
        **MATCH,
        **ENDED,
    },
    "cancelled": {"state": "CANCELLED", **ENDED},
}
#: Those with an attempt on record.
ATTEMPTED: Final = ("delivering", "delivered", "failed")


def _schema_5() -> Migrations:
    """Return the migrations that a picback of schema 5 has."""
    some = Migrations("picback")
    some._migrations[:] = schema.migrations._migrations[:5]
    return some


def _fill(connection: Connection) -> int:
    connection.execute(
        "INSERT INTO api_key (id, name, scopes, created_at) VALUES ('key_1', 'tests', '[]', 1)"
    )
    connection.execute("INSERT INTO destination (name) VALUES ('https://receiver.test:443')")
    for name, changes in QUERIES.items():
        row = {
            "id": f"qry_{name}",
            "key_id": "key_1",
            "text": name,
            "callback_url": "https://receiver.test/",
            "destination_id": 1,
            "state": "QUEUED",
            "due_at": 2,
            "created_at": 1,
            **changes,
        }
        seq = connection.execute(
            f"INSERT INTO query ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
            tuple(row.values()),
        ).lastrowid
        if name in ATTEMPTED:
            connection.execute(
                "INSERT INTO attempt (query_seq, number, started_at, latency_ms)"
                " VALUES (?, 1, 3, 4)",
                (seq,),
            )
    connection.execute(
        "INSERT INTO image (id, sha256, media_type, size_bytes, width, height, state, created_at,"
        " pending_since, due_at) VALUES ('img_1', 'ab', 'image/png', 4, 1, 1, 'PENDING', 1, 1, 1)"
    )
    connection.execute("INSERT INTO image_content (image_seq, content) VALUES (1, ?)", (b"kept",))
    return len(QUERIES)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a database that was made and filled at schema 5."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", _schema_5())
        with closing(Database.own(tmp_path)) as database:
            database.write(_fill)
            assert [(5,)] == database.read("PRAGMA user_version")
    return tmp_path


def _now() -> int:
    return time.time_ns() // 1_000_000


def _queries(database: Database) -> list[Any]:
    columns = ", ".join({column for changes in QUERIES.values() for column in changes} | {"id"})
    return database.read(f"SELECT {columns} FROM query ORDER BY seq")


def test_a_database_of_schema_5_opens_with_every_row_and_attempt(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", _schema_5())
        with closing(Database.own(old)) as database:
            before = _queries(database)
    with closing(Database.own(old)) as database:
        found = Store(database).page(before=None, size=99, state=None)

        assert before == _queries(database)
        assert len(QUERIES) == len(found)
        assert list(ATTEMPTED[::-1]) == [query.text for query in found if query.attempts]
        assert [(schema.version(),)] == database.read("PRAGMA user_version")
        assert [("ok",)] == database.read("PRAGMA integrity_check")
        assert [] == database.read("PRAGMA foreign_key_check")
        assert [("DELIVER",)] == database.read("SELECT DISTINCT on_unmatched FROM query")


def test_queries_of_schema_5_go_on_where_they_were(old: Path) -> None:
    with closing(Database.own(old)) as database:
        store = Store(database)
        assert 1 == store.queries.void_leases(max_attempts=9, now=START)
        leases = store.lease(limit=9)
        for lease in leases:
            made = attempt(lease.attempt)
            assert store.queries.settle(lease, made, Delivered(), now=START)
        assert "CANCELLED" == store.queries.cancel("qry_cancelled", now=START).state
        assert "DELIVERING" == store.queries.redeliver("qry_failed", now=START).state

        assert {"queued", "leased", "delivering", "redelivered"} == {lease.text for lease in leases}
        assert not any(lease.ends_unmatched for lease in leases)


@pytest.mark.parametrize("opened", ["by the migration", "again"])
def test_a_migrated_database_takes_the_new_state_and_nothing_that_makes_no_sense(
    old: Path, opened: str
) -> None:
    if opened == "again":
        Database.own(old).close()
    with closing(Database.own(old)) as database:
        store = Store(database)
        for lease in store.lease(limit=9):
            store.queries.settle(lease, None, Delivered(), now=START)
        query = store.submit(on_unmatched="END")
        outcome = Unmatched(matched=UNMATCHED)
        assert store.queries.settle(lease_one(store), None, outcome, now=START)
        assert "UNMATCHED" == store.queries.get(query.id).state

        for change in (
            "state = 'ODD'",
            "state = 'UNMATCHED'",
            "on_unmatched = 'ODD'",
            "due_at = 1",
            "ended_at = NULL",
            "failure_reason = 'TIMEOUT'",
            "key_id = 'key_0'",
            "attempt = 'two'",
        ):
            with pytest.raises(StorageError):
                database.write(_update(change))


def _update(change: str) -> Callable[[Connection], int]:
    return lambda connection: int(
        connection.execute(f"UPDATE query SET {change} WHERE state = 'DELIVERED'").rowcount
    )


def test_a_migration_that_does_not_end_leaves_the_database_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def schema_of() -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "migrations", _schema_5())
            with closing(Database.own(old)) as database:
                return database.read("SELECT name, sql FROM sqlite_schema ORDER BY name")

    before = schema_of()
    (migration,) = (
        each for each in schema.migrations._migrations if each.name.startswith("m0007_")
    )
    interrupted = _schema_5()

    @interrupted(name=migration.name)
    def fails_at_its_end(db: Any) -> None:
        migration.fn(db)
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", interrupted)
        with pytest.raises(RuntimeError):
            Database.own(old)

    assert before == schema_of()
    with closing(Database.own(old)) as database:
        assert [("ok",)] == database.read("PRAGMA integrity_check")


def test_queries_that_were_queued_before_they_had_schedules_get_one(old: Path) -> None:
    before = _now()
    with closing(Database.own(old)) as database:
        cycles = dict(database.read("SELECT text, cycle_at FROM query WHERE ended_at IS NULL"))

    # One that was redelivered, nobody knows when, has its schedule from now on.
    assert before <= cycles.pop("redelivered") <= _now()
    assert {"queued": 1, "leased": 1, "delivering": 1} == cycles


def test_images_of_schema_5_are_there_have_no_renditions_and_take_some(old: Path) -> None:
    with closing(Database.own(old)) as database:
        images = Store(database).images
        image = images.get("img_1")

        assert b"kept" == images.content(image.seq)
        assert images.rendition(image.seq, "PREVIEW") is None
        (lease,) = images.lease_for_tagging(limit=1, now=START)
        assert 0 == lease.interruptions
        images.add_renditions(image.seq, [Rendition("PREVIEW", 1, 1, b"made")])
        assert b"made" == images.rendition(image.seq, "PREVIEW")
