"""Operations for tests of the writer, and ways to make several of them wait together."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from storage.database import _Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from storage.database import Connection, Database

#: Long enough for a busy machine; only a failing test waits for it.
PATIENCE = 60.0


def insert(name: str, value: bytes = b"") -> Callable[[Connection], int]:
    """Return an operation that leaves a row behind."""
    return lambda connection: int(
        connection.execute(
            "INSERT INTO setting (name, value) VALUES (?, ?)", (name, value)
        ).rowcount
    )


def names(database: Database) -> list[str]:
    """Return what those operations left."""
    return [name for (name,) in database.read("SELECT name FROM setting ORDER BY name")]


def fail(connection: Connection) -> None:
    """Be an operation that has second thoughts."""
    insert("undone")(connection)
    msg = "second thoughts"
    raise ValueError(msg)


def ask(database: Database, operation: Callable[[Connection], Any], size: int = 0) -> Future[Any]:
    """Put an operation where `write` does, without waiting for it."""
    done: Future[Any] = Future()
    database._operations.put(_Operation(operation, size, done))
    return done


@contextmanager
def busy_writer(database: Database) -> Iterator[list[str]]:
    """Keep the writer from everything until the block ends; yield what it runs from then on."""
    statements: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def wait(connection: Connection) -> None:
        connection.set_trace_callback(statements.append)
        entered.set()
        leave.wait(PATIENCE)
        statements.clear()

    done = ask(database, wait)
    assert entered.wait(PATIENCE)
    try:
        yield statements
    finally:
        leave.set()
    done.result(PATIENCE)


def transactions(statements: list[str]) -> list[int]:
    """Return how many rows each transaction inserted that was committed."""
    text = " ".join(statements).replace("ROLLBACK TO", "UNDO")
    begun = (part for part in text.split("BEGIN IMMEDIATE")[1:] if "ROLLBACK" not in part)
    return [part.count("INSERT") for part in begun]


def settle(futures: list[Future[Any]]) -> list[Any]:
    """Wait for all; return results and exceptions."""
    return [future.exception(PATIENCE) or future.result() for future in futures]
