"""The one writer and the readers, and what happens when either is in trouble."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from storage import driver
from storage.database import Database
from storage.errors import StorageBusyError, StorageError, StorageFullError
from tests.storage.writing import (
    PATIENCE,
    ask,
    busy_writer,
    fail,
    insert,
    names,
    queue_of,
    settle,
    transactions,
)

if TYPE_CHECKING:
    from pathlib import Path

    from storage.database import Connection


def test_operations_that_wait_together_share_a_transaction(database: Database) -> None:
    with busy_writer(database) as statements:
        asked = [ask(database, insert(f"{number}")) for number in range(5)]
    results = settle(asked)

    assert [1] * 5 == results
    assert [5] == transactions(statements)
    assert ["0", "1", "2", "3", "4"] == names(database)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([0] * 256, [256]),
        ([0] * 257, [256, 1]),
        ([4_000_000, 4_000_000, 1], [2, 1]),
        ([7_999_999, 1, 1], [2, 1]),
        # A single image may be larger than the bound.
        ([20_000_000, 1], [1, 1]),
    ],
)
def test_a_transaction_is_bounded_in_operations_and_bytes(
    database: Database, sizes: list[int], expected: list[int]
) -> None:
    with busy_writer(database) as statements:
        asked = [ask(database, insert(f"{number}"), size=size) for number, size in enumerate(sizes)]
    settle(asked)

    assert expected == transactions(statements)
    assert len(sizes) == len(names(database))


def test_an_operation_that_raises_undoes_itself_and_nobody_else(database: Database) -> None:
    with busy_writer(database) as statements:
        asked = [ask(database, operation) for operation in (insert("a"), fail, insert("b"))]
    first, second, third = settle(asked)

    assert [3] == transactions(statements)
    assert (1, 1) == (first, third)
    assert "second thoughts" == str(second)
    assert ["a", "b"] == names(database)


def test_a_violated_constraint_is_told_as_a_storage_error(database: Database) -> None:
    database.write(insert("a"))
    with pytest.raises(StorageError):
        database.write(insert("a"))

    assert ["a"] == names(database)


def test_a_commit_that_fails_tells_everybody_and_stores_nothing(database: Database) -> None:
    def violate_at_commit(connection: Connection) -> None:
        connection.execute("PRAGMA defer_foreign_keys=ON").fetchall()
        connection.execute("INSERT INTO image_content (image_seq, content) VALUES (99, x'00')")

    with busy_writer(database):
        asked = [
            ask(database, operation) for operation in (insert("a"), violate_at_commit, insert("b"))
        ]
    failures = settle(asked)

    assert [StorageError] * 3 == [type(failure) for failure in failures]
    assert [] == names(database)
    assert 1 == database.write(insert("c"))
    assert ["c"] == names(database)


def test_even_a_rollback_that_fails_leaves_nobody_waiting(database: Database) -> None:
    class FailingDisk:
        """A connection whose disk is gone once the transaction has begun."""

        def __init__(self, connection: Connection) -> None:
            self._connection = connection
            self.in_transaction = True

        def execute(self, sql: str) -> None:
            if sql.startswith("BEGIN"):
                return
            raise driver.OperationalError(sql)

    writer = database._writer
    assert writer is not None
    real: Any = writer._connection
    failing: Any = FailingDisk(real)
    writer._connection = failing
    for _ in range(2):
        with pytest.raises(StorageError):
            database.write(fail)
    writer._connection = real
    assert 1 == database.write(insert("a"))


def test_a_reader_cannot_write(database: Database) -> None:
    for sql in (
        "INSERT INTO setting (name, value) VALUES ('a', x'00') RETURNING name",
        "CREATE TABLE mine (a)",
        "DELETE FROM setting",
        "PRAGMA user_version = 99",
    ):
        with pytest.raises(StorageError):
            database.read(sql)

    assert [] == names(database)


def test_what_was_written_is_seen_by_every_reader_at_once(database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            database.write(insert(f"{number}"))
            seen = [pool.submit(names, database).result() for _ in range(4)]

            assert [number + 1] * 4 == [len(found) for found in seen]


def test_many_threads_lose_nothing(database: Database) -> None:
    def write_fifty(thread: int) -> int:
        return sum(database.write(insert(f"{thread}/{number}")) for number in range(50))

    with ThreadPoolExecutor(16) as pool:
        written = list(pool.map(write_fifty, range(16)))

    assert [50] * 16 == written
    assert 800 == len(names(database))


def test_the_writer_syncs_every_commit_and_minds_foreign_keys(database: Database) -> None:
    def pragmas(connection: Connection) -> dict[str, Any]:
        return {
            name: connection.execute(f"PRAGMA {name}").fetchall()[0][0]
            for name in (
                "journal_mode",
                "synchronous",
                "foreign_keys",
                "secure_delete",
                "page_size",
                "auto_vacuum",
                "mmap_size",
            )
        }

    found = database.write(pragmas)

    assert {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "secure_delete": 0,
        "page_size": 16384,
        "auto_vacuum": 2,  # INCREMENTAL
        "mmap_size": 0,
    } == found


def test_reading_never_pins_the_log(database: Database) -> None:
    database.write(insert("a"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: names(database), range(16)))
        database.write(insert("b"))
        with closing(driver.connect(database.folder / "picback.db", timeout=0)) as other:
            (checkpoint,) = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # Not busy, nothing left in the log, nothing left to copy.
    assert (0, 0, 0) == checkpoint


def test_closing_leaves_one_file_and_no_log(tmp_path: Path) -> None:
    database = Database.own(tmp_path)
    database.write(insert("a"))
    names(database)
    database.close()

    assert {"lock", "picback.db"} == {path.name for path in tmp_path.iterdir()}


def test_closing_on_a_failing_disk_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    def no_checkpoint(_action: int, pragma: str | None, *_: object) -> int:
        return int(apsw.SQLITE_DENY if pragma == "wal_checkpoint" else apsw.SQLITE_OK)

    database = Database.own(tmp_path)
    database.write(insert("a"))
    database.write(lambda connection: connection.set_authorizer(no_checkpoint))
    database.close()

    with closing(Database.own(tmp_path)) as again:
        assert ["a"] == names(again)


def test_what_was_asked_for_before_closing_is_still_done(tmp_path: Path) -> None:
    database = Database.own(tmp_path)
    with busy_writer(database):
        asked = [ask(database, insert(f"{number}")) for number in range(300)]
        closing_ = threading.Thread(target=database.close)
        closing_.start()
    closing_.join(PATIENCE)
    results = settle(asked)

    assert [1] * 300 == results
    with closing(Database.own(tmp_path)) as database:
        assert 300 == len(names(database))


def test_a_closed_database_refuses_at_once(tmp_path: Path) -> None:
    database = Database.own(tmp_path)
    names(database)
    database.close()
    database.close()

    with pytest.raises(StorageBusyError):
        database.write(insert("late"))
    with pytest.raises(StorageError):
        names(database)
    with ThreadPoolExecutor(1) as pool, pytest.raises(StorageBusyError):
        pool.submit(names, database).result()  # a thread that has not read before


def test_whoever_comes_after_closing_has_begun_is_refused_and_all_before_are_served(
    tmp_path: Path,
) -> None:
    database = Database.own(tmp_path)
    with busy_writer(database):
        before = ask(database, insert("before"))
        closing_ = threading.Thread(target=database.close)
        closing_.start()
        assert queue_of(database).more.acquire(timeout=PATIENCE)  # it waits for its turn
        with pytest.raises(StorageBusyError):
            database.write(insert("after"))
    closing_.join(PATIENCE)

    assert 1 == before.result(PATIENCE)
    with closing(Database.own(tmp_path)) as again:
        assert ["before"] == names(again)


def test_nobody_hangs_and_nothing_is_lost_when_closing_meets_writers(tmp_path: Path) -> None:
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places between any two steps
    try:
        for round_ in range(5):
            database = Database.own(tmp_path / f"{round_}")
            stored, ended = _write_until_closed(database)

            assert ended
            with closing(Database.own(database.folder)) as database:
                assert sorted(stored) == names(database)
    finally:
        sys.setswitchinterval(old)


def _write_until_closed(database: Database) -> tuple[list[str], bool]:
    """Close under 8 writers; return what they were told is stored, and whether all ended."""
    stored: list[str] = []
    writing = threading.Barrier(9)

    def write(thread: int) -> None:
        writing.wait()
        number = 0
        try:
            while True:
                database.write(insert(f"{thread}/{number}"))
                stored.append(f"{thread}/{number}")
                number += 1
        except StorageBusyError:
            return

    threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    writing.wait()
    database.close()
    for thread in threads:
        thread.join(PATIENCE / len(threads))
    return stored, not any(thread.is_alive() for thread in threads)


def test_a_full_disk_refuses_what_is_too_big_and_recovers_by_itself(database: Database) -> None:
    def limit(pages: int) -> None:
        database.write(
            lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").fetchall()
        )

    limit(database.read("PRAGMA page_count")[0][0] + 2)
    with busy_writer(database):
        asked = [
            ask(database, operation)
            for operation in (insert("a"), insert("big", bytes(1_000_000)), insert("b"))
        ]
    first, big, third = settle(asked)

    assert (1, StorageFullError, 1) == (first, type(big), third)
    assert ["a", "b"] == names(database)

    limit(1_000_000)

    assert 1 == database.write(insert("big", bytes(1_000_000)))
    assert ["a", "b", "big"] == names(database)


def test_a_lock_held_too_long_by_another_is_told_as_busy(database: Database) -> None:
    database.write(lambda connection: connection.execute("PRAGMA busy_timeout=1").fetchall())
    with closing(driver.connect(database.folder / "picback.db")) as intruder:
        intruder.execute("BEGIN IMMEDIATE")

        with pytest.raises(StorageBusyError):
            database.write(insert("a"))
        assert [] == names(database)

        intruder.execute("ROLLBACK")

    assert 1 == database.write(insert("a"))


def test_a_lock_that_is_let_go_in_time_is_waited_for(database: Database) -> None:
    with closing(driver.connect(database.folder / "picback.db")) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        asked = ask(database, insert("a"))
        intruder.execute("ROLLBACK")
        stored = asked.result(PATIENCE)

    assert 1 == stored
