"""The one connection that writes: many threads' changes in one transaction, and so in one fsync.

There is no thread that writes for the others. Whoever comes while nobody writes does, for all who
have come by then; of those who come meanwhile, the first writes next. So a change that comes
alone waits for no other thread, and nobody writes for others for longer than one transaction.
`analysis.combining` does the same for lemmas; the two packages know nothing of each other.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from storage import driver
from storage.errors import StorageBusyError, StorageError, StorageFullError, translated
from storage.thread_pool import StartedPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from storage.database import Connection

T = TypeVar("T")

#: Most operations and most bytes of images in one transaction: beyond these a commit takes
#: longer than it saves, and the first in the batch waits for the last.
_BATCH_OPERATIONS: Final = 256
_BATCH_BYTES: Final = 8_000_000
#: A commit of at least so many operations is worth another thread: it takes longer than to wake
#: one, does without Python's lock, and so can be where Python is not.
_MANY_OPERATIONS: Final = 4


def _taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Operation:
    """A function to be run in a transaction, and what came of it."""

    run: Callable[[Connection], Any]
    size_bytes: int
    #: Whether the reserve is still to be released for it, should the disk be full.
    uses_reserve: bool
    #: Released when its thread may go on: the operation has ended, or is to be written by it.
    turn: threading.Lock = field(default_factory=_taken)
    has_ended: bool = False
    result: Any = None
    error: BaseException | None = None

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Let its thread go on."""
        self.result, self.error, self.has_ended = result, error, True
        self.turn.release()


class GroupCommit:
    """Writes through *connection*, which no other object uses. Safe to use from any thread.

    *with_reserve* makes some space on a full disk for a block, for operations that may use it.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        with_reserve: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._connection = connection
        self._with_reserve = with_reserve
        self._committer = StartedPool(1, name="commit")
        self._committer.start()
        self._gate = threading.Lock()
        self._waiting: deque[_Operation] = deque()
        self._somebody_writes = False
        self._closed = False

    def write(
        self,
        run: Callable[[Connection], T],
        *,
        size_bytes: int = 0,
        uses_reserve: bool = False,
    ) -> T:
        """Run a function in a transaction; return its result when that is on disk.

        Args:
            run: As `Database.write` has it.
            size_bytes: About how many bytes it writes, to bound what shares a transaction.
            uses_reserve: Whether to release the reserve and run it again if the disk is full.

        Raises:
            Exception: What it raised; its changes are undone, and nobody else's.
            StorageBusyError: It is closed.
            StorageError: Nothing was written.
        """
        result: T = self._settle(_Operation(run, size_bytes, uses_reserve))
        return result

    def finish(self) -> None:
        """Return when all that was asked for is done; all else is refused from now on."""
        with suppress(StorageError):  # the disk is gone, or it has finished before
            self._settle(_Operation(lambda _: None, 0, uses_reserve=False), is_last=True)

    def close(self) -> None:
        """Close the connection; `finish` comes first."""
        with suppress(driver.Error):  # on a full disk the log stays as it is, and is as good
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._connection.close()
        self._committer.shutdown()

    def _settle(self, operation: _Operation, *, is_last: bool = False) -> Any:
        with self._gate:
            if self._closed:
                msg = "the database is closed"
                raise StorageBusyError(msg)
            self._closed = is_last
            self._waiting.append(operation)
            must_wait, self._somebody_writes = self._somebody_writes, True
        if must_wait:
            operation.turn.acquire()
        if not operation.has_ended:
            self._write_what_waits()
        if operation.error is not None:
            raise operation.error
        return operation.result

    def _write_what_waits(self) -> None:
        """Commit one transaction, and let somebody else commit the next."""
        try:
            self._run(self._take_some())
        finally:
            with self._gate:
                if self._waiting:
                    self._waiting[0].turn.release()
                else:
                    self._somebody_writes = False

    def _take_some(self) -> list[_Operation]:
        """Take what shares the next transaction: at least the first of those who wait."""
        batch: list[_Operation] = []
        size_bytes = 0
        with self._gate:
            while self._waiting and len(batch) < _BATCH_OPERATIONS and size_bytes < _BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size_bytes += batch[-1].size_bytes
        return batch

    def _run(self, batch: list[_Operation]) -> None:
        """Run *batch* in one transaction and end every operation, whatever happens."""
        try:
            results = self._transact(batch)
        except StorageFullError as error:
            if len(batch) > 1:
                # SQLite undid them all, perhaps over one large image: each by itself, then. One
                # that releases the reserve leaves no space to those that may not use it.
                for operation in batch:
                    self._run([operation])
                return
            results = [_Refused(error)]
        except BaseException as error:  # noqa: BLE001 - every waiter gets a result
            results = [_Refused(error)] * len(batch)
        for operation, result in zip(batch, results, strict=True):
            if not isinstance(result, _Refused):
                operation.end(result)
            elif operation.uses_reserve and isinstance(result.error, StorageFullError):
                self._run_with_reserve(operation)
            else:
                operation.end(error=result.error)

    def _run_with_reserve(self, operation: _Operation) -> None:
        """Run an operation for which the disk was full once more."""
        operation.uses_reserve = False
        try:
            with self._with_reserve():
                self._run([operation])
                # The next one then writes over the log from its beginning instead of making it
                # longer, so the reserve lasts for more of them.
                with suppress(driver.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except StorageError as error:  # from releasing it
            operation.end(error=error)

    def _transact(self, batch: list[_Operation]) -> list[Any]:
        """Return what each operation of *batch* returned, or a `_Refused`, when that is on disk."""
        try:
            with translated():
                results = _run_all(self._connection, batch)
                self._commit(len(batch))
        except BaseException:
            if self._connection.in_transaction:
                with suppress(driver.Error):  # a failing disk; the next batch tries again
                    self._connection.execute("ROLLBACK")
            raise
        return results

    def _commit(self, operations: int) -> None:
        if operations < _MANY_OPERATIONS:
            self._connection.execute("COMMIT")
        else:
            self._committer.submit(self._connection.execute, "COMMIT").result()


@dataclass(frozen=True, slots=True)
class _Refused:
    """An operation undid itself; its neighbours are none the worse."""

    error: BaseException


def _run_all(connection: Connection, batch: list[_Operation]) -> list[Any]:
    """Begin a transaction and run *batch* in it; return what each returned, or a `_Refused`.

    Mostly nobody refuses, and a savepoint for each would cost as much as a row. If somebody does,
    all begin anew, with savepoints.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        return [operation.run(connection) for operation in batch]
    except Exception:
        if not connection.in_transaction:
            raise  # SQLite rolled everything back (disk full): the whole batch failed
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    return [_run_one(connection, operation) for operation in batch]


def _run_one(connection: Connection, operation: _Operation) -> Any:
    connection.execute("SAVEPOINT operation")
    try:
        with translated():
            result = operation.run(connection)
    except Exception as error:
        if not connection.in_transaction:
            raise  # as above
        connection.execute("ROLLBACK TO operation")
        connection.execute("RELEASE operation")
        return _Refused(error)
    connection.execute("RELEASE operation")
    return result
