"""Connections that read are few, lent to one thread at a time, and never wanting for descriptors."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from storage.database import Database
from storage.errors import StorageBusyError
from storage.readers import DESCRIPTORS_EACH, Readers
from tests.descriptors import descriptors_left, open_descriptors
from tests.storage.writing import insert, names

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 30.0


class CannotOpenError(Exception):
    """As a driver's own."""


class FakeConnection:
    """Knows whether it is open and how many use it."""

    def __init__(self) -> None:
        self.is_closed = False
        self.users = 0

    def close(self) -> None:
        """Be closed, which must not happen while somebody uses it."""
        assert self.users == 0
        self.is_closed = True


class Connections:
    """Opens connections, at most *limit* of them, as a process with few descriptors does."""

    def __init__(self, limit: int = 1_000) -> None:
        self.limit = limit
        self.opened: list[FakeConnection] = []

    def __call__(self) -> FakeConnection:
        if len(self.opened) >= self.limit:
            msg = "unable to open database file"
            raise CannotOpenError(msg)
        self.opened.append(FakeConnection())
        return self.opened[-1]


def use(readers: Readers, times: int) -> None:
    for _ in range(times):
        connection = readers.take()
        connection.users += 1
        assert connection.users == 1
        assert not connection.is_closed
        connection.users -= 1
        readers.give_back(connection)


@pytest.mark.parametrize(("most", "limit"), [(1, 9), (3, 9), (9, 1), (9, 3)])
def test_many_threads_share_few_connections(most: int, limit: int) -> None:
    connections = Connections(limit)
    readers = Readers(connections, most=most)
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places between any two steps
    try:
        with ThreadPoolExecutor(16) as pool:
            for used in [pool.submit(use, readers, 50) for _ in range(16)]:
                used.result(PATIENCE)
    finally:
        sys.setswitchinterval(old)
    readers.close()

    assert 1 <= len(connections.opened) <= min(most, limit)
    assert all(connection.is_closed for connection in connections.opened)


def test_without_any_connection_the_cause_is_raised_and_a_later_call_tries_again() -> None:
    connections = Connections(0)
    readers = Readers(connections, most=2)
    for _ in range(3):
        with pytest.raises(CannotOpenError):
            readers.take()
    connections.limit = 1

    assert readers.take() is connections.opened[0]


def test_closing_waits_for_connections_in_use() -> None:
    connections = Connections()
    readers = Readers(connections, most=2)
    connection = readers.take()
    connection.users = 1
    closing_ = threading.Thread(target=readers.close)
    closing_.start()
    with pytest.raises(StorageBusyError):
        use(readers, sys.maxsize)  # until it has begun
    assert not connection.is_closed
    connection.users = 0
    readers.give_back(connection)
    closing_.join(PATIENCE)

    assert not closing_.is_alive()
    assert connection.is_closed


def test_who_waits_for_a_connection_is_refused_by_closing() -> None:
    readers = Readers(Connections(), most=1)
    connection = readers.take()
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(readers.take)
        closing_ = pool.submit(readers.close)
        with pytest.raises(StorageBusyError):
            waits.result(PATIENCE)
        readers.give_back(connection)
        closing_.result(PATIENCE)


def test_a_database_holds_no_more_descriptors_than_its_readers_have(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path, max_readers=3)) as database:
        database.write(insert("a"))
        before = open_descriptors()
        together = threading.Barrier(16)

        def read() -> None:
            together.wait()
            for _ in range(20):
                names(database)

        with ThreadPoolExecutor(16) as pool:
            for each in [pool.submit(read) for _ in range(16)]:
                each.result(PATIENCE)

        assert open_descriptors() - before <= 2 * DESCRIPTORS_EACH  # one was open before


def test_threads_that_never_read_before_can_without_a_descriptor(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path)) as database:
        database.write(insert("a"))
        with ThreadPoolExecutor(8) as pool, descriptors_left(0):
            found = [pool.submit(names, database).result(PATIENCE) for _ in range(8)]
            database.write(insert("b"))

        assert [["a"]] * 8 == found
        assert ["a", "b"] == names(database)


def test_a_database_that_cannot_be_opened_for_want_of_descriptors_can_be_later(
    tmp_path: Path,
) -> None:
    Database.own(tmp_path).close()
    with descriptors_left(0), pytest.raises(StorageBusyError):
        Database.beside(tmp_path)

    with closing(Database.beside(tmp_path)) as beside:
        assert [] == names(beside)
