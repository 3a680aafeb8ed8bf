"""Operations for tests of the writer, and ways to make several of them wait together."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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


class _Queue(deque[Any]):
    """A queue of operations that tells when there is one more."""

    def __init__(self) -> None:
        super().__init__()
        self.more = threading.Semaphore(0)

    def append(self, operation: Any) -> None:
        super().append(operation)
        self.more.release()


def queue_of(database: Database) -> _Queue:
    """Return the queue of those who wait to write, which tells of each that comes."""
    writer = database._writer
    assert writer is not None
    with writer._gate:
        if not isinstance(writer._waiting, _Queue):
            queue = _Queue()
            queue.extend(writer._waiting)
            writer._waiting = queue
        return writer._waiting


def ask(
    database: Database,
    operation: Callable[[Connection], Any],
    size: int = 0,
    *,
    uses_reserve: bool = False,
) -> Future[Any]:
    """Have a thread ask for an operation; return when it waits for its turn."""
    queue = queue_of(database)
    done: Future[Any] = Future()

    def write() -> None:
        try:
            done.set_result(database.write(operation, size_bytes=size, uses_reserve=uses_reserve))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is told
            done.set_exception(error)

    threading.Thread(target=write, daemon=True).start()
    assert queue.more.acquire(timeout=PATIENCE)
    return done


@contextmanager
def busy_writer(database: Database) -> Iterator[list[str]]:
    """Keep everybody from writing until the block ends; yield what runs from then on."""
    statements: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def trace(_cursor: Any, sql: str, _bindings: Any) -> bool:
        statements.append(sql)
        return True

    def wait(connection: Connection) -> None:
        connection.exec_trace = trace
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
