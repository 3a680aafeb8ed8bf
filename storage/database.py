"""The file, its one writer, and its readers.

Everything that changes the database goes through `Database.write`, as a function of a
connection; a newcomer would break the rule by writing on a reader's connection, which
SQLite refuses because readers are opened with ``mode=ro``.
"""

from __future__ import annotations

import fcntl
import os
import queue
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlite_utils
from pysqlite3 import dbapi2 as sqlite3

from storage import schema
from storage.errors import (
    FolderInUseError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    UnusableDatabaseError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

#: pysqlite3 ships no types; the name says at least what is meant.
Connection: TypeAlias = Any

T = TypeVar("T")

#: Older ones can corrupt a WAL database when two connections write and checkpoint at the
#: same moment. Source: sqlite.org/wal.html, "The WAL-Reset Bug".
_OLDEST_SQLITE: Final = (3, 51, 3)
#: Most operations and most bytes of images in one transaction: beyond these a commit takes
#: longer than it saves, and the first in the batch waits for the last.
_BATCH_OPERATIONS: Final = 256
_BATCH_BYTES: Final = 8_000_000
#: How long another process (the command line, a backup) may hold the write lock, in seconds.
_BUSY_TIMEOUT: Final = 5.0


@dataclass(slots=True)
class _Operation:
    """A function that waits for its turn on the writer's connection."""

    run: Callable[[Connection], Any]
    size_bytes: int
    done: Future[Any]


class Database:
    """One SQLite file in a data folder, safe to use from any thread.

    `own` is for the one server of a folder: it writes on a thread of its own, many
    operations to a commit, so that hundreds of callers share one fsync. `beside` is for
    commands that run next to a server: they write in short transactions of their own.
    """

    def __init__(self, folder: Path, *, _lock: int | None) -> None:
        self.folder = folder
        self._file = folder / "picback.db"
        self._lock = _lock
        self._local = threading.local()
        self._readers: list[Connection] = []
        self._operations: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._closed = False
        #: Held to put something where `close` looks, and by `close`.
        self._gate = threading.Lock()
        self._writer: threading.Thread | None = None

    @classmethod
    def own(cls, folder: Path) -> Database:
        """Open the database in *folder* as its only server, creating or migrating it.

        Raises:
            FolderInUseError: Another server has it. Trying again helps when that one stops.
            UnusableDatabaseError: Not a picback database, or of a newer version, or this
                Python's SQLite is too old to be trusted with it.
            StorageError: The folder cannot be written.
        """
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            msg = f"SQLite {sqlite3.sqlite_version} can corrupt databases; install pysqlite3"
            raise UnusableDatabaseError(msg)
        with _translated():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _open_lock(folder)
        database = cls(folder, _lock=lock)
        try:
            with _translated():
                _take(lock, folder)
                connection = database._connect_writer()
                try:
                    database._file.chmod(0o600)  # it holds secrets, whatever the umask is
                    _migrate(connection)
                except BaseException:
                    connection.close()
                    raise
        except BaseException:
            os.close(lock)
            raise
        writer = threading.Thread(
            target=database._write_loop, args=(connection,), name="picback-writer", daemon=True
        )
        database._writer = writer
        writer.start()
        return database

    @classmethod
    def beside(cls, folder: Path) -> Database:
        """Open an existing database next to its server, or while none runs.

        Raises:
            UnusableDatabaseError: There is none, or one of another schema version.
        """
        database = cls(folder, _lock=None)
        if not database._file.exists():
            msg = f"{folder} holds no picback database; picback serve makes one"
            raise UnusableDatabaseError(msg)
        try:
            with _translated():
                _check(database._reader(), folder, oldest=schema.version())
        except BaseException:
            database.close()
            raise
        return database

    def is_served(self) -> bool:
        """Tell whether a server owns the folder now.

        Raises:
            StorageError: The folder cannot be looked into.
        """
        with _translated():
            lock = _open_lock(self.folder)
            try:
                _take(lock, self.folder)
            except FolderInUseError:
                return True
            finally:
                os.close(lock)
        return False

    def read(self, sql: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a SELECT, as of the last commit.

        Rows are always fetched to the end: a cursor left open would pin the write-ahead
        log and let it grow without limit.
        """
        with _translated():
            return list(self._reader().execute(sql, parameters).fetchall())

    def write(self, operation: Callable[[Connection], T], *, size_bytes: int = 0) -> T:
        """Run *operation* in a transaction; return its result when that is on disk.

        The operation may raise: its own changes are then undone, nobody else's. It runs
        on the writer's thread and must not block.

        Args:
            operation: Called with the writer's connection; called again if what it did was
                undone because the disk was full, or because another one in its transaction
                raised. Its statements with RETURNING must be fetched to the end, or SQLite
                does not commit them.
            size_bytes: About how many bytes it writes, to bound what shares a commit.

        Raises:
            StorageFullError: Nothing was written; trying again helps when there is space.
            StorageBusyError: Nothing was written; trying again helps.
            StorageError: Nothing was written.
        """
        if self._writer is None:
            return self._write_directly(operation)
        done: Future[T] = Future()
        with self._gate:
            self._refuse_if_closed()
            self._operations.put(_Operation(operation, size_bytes, done))
        return done.result()

    def truncate_log(self) -> bool:
        """Copy the write-ahead log into the file and empty it, with the old pages that it holds.

        Returns:
            Whether it is empty now: it cannot be emptied while another process reads.
        """
        connection = self._connect_writer()
        try:
            with _translated():
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]
        finally:
            connection.close()
        return not busy

    def close(self) -> None:
        """Finish what was asked for, then close the file and give up the folder."""
        with self._gate:
            self._closed = True
            self._operations.put(None)  # the last: whoever comes now is refused
            # Before the writer's, so that the one closed last tidies the log away.
            for connection in self._readers:
                connection.close()
            self._readers.clear()
        if self._writer is not None:
            self._writer.join()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write_loop(self, connection: Connection) -> None:
        """Take what has come in, commit it at once, tell everybody; until closed."""
        while (first := self._operations.get()) is not None:
            batch, last = self._collect(first)
            _commit(connection, batch)
            if last:
                break
        with suppress(sqlite3.Error):  # on a full disk the log stays as it is, and is as good
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()

    def _collect(self, first: _Operation) -> tuple[list[_Operation], bool]:
        batch, size_bytes = [first], first.size_bytes
        while len(batch) < _BATCH_OPERATIONS and size_bytes < _BATCH_BYTES:
            try:
                operation = self._operations.get_nowait()
            except queue.Empty:
                break
            if operation is None:
                return batch, True
            batch.append(operation)
            size_bytes += operation.size_bytes
        return batch, False

    def _write_directly(self, operation: Callable[[Connection], T]) -> T:
        connection = self._connect_writer()
        try:
            # The server checkpoints; two who do can collide.
            connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
            done: Future[T] = Future()
            _commit(connection, [_Operation(operation, 0, done)])
            return done.result()
        finally:
            connection.close()

    def _connect_writer(self) -> Connection:
        with _translated():
            connection = sqlite3.connect(
                self._file, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT
            )
            try:
                _check(connection, self.folder)  # before anything changes the file
                for pragma in (
                    # The first two only matter while the file is empty.
                    "page_size=16384",  # images: fewer overflow pages
                    "auto_vacuum=INCREMENTAL",
                    "journal_mode=WAL",
                    "synchronous=FULL",  # NORMAL loses acknowledged commits in a power cut
                    "foreign_keys=ON",
                    "secure_delete=OFF",  # distributions switch it on: 10x the cost of a delete
                    "trusted_schema=OFF",
                    "journal_size_limit=67108864",
                    "cache_size=-65536",
                ):
                    connection.execute(f"PRAGMA {pragma}").fetchall()
            except BaseException:
                connection.close()
                raise
            return connection

    def _reader(self) -> Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            self._refuse_if_closed()
            connection = sqlite3.connect(
                f"{self._file.absolute().as_uri()}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,  # close() closes them all
                timeout=_BUSY_TIMEOUT,
            )
            connection.execute("PRAGMA query_only=ON").fetchall()
            with self._gate:
                self._readers.append(connection)
            self._local.connection = connection
        return connection

    def _refuse_if_closed(self) -> None:
        if self._closed:
            msg = "the database is closed"
            raise StorageBusyError(msg)


def _open_lock(folder: Path) -> int:
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        msg = f"another picback serve owns the data folder {folder}"
        raise FolderInUseError(msg) from None


def _check(connection: Connection, folder: Path, *, oldest: int = 0) -> None:
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchall()[0][0]
        for name in ("application_id", "user_version")
    )
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0]
    if tables and application != schema.APPLICATION_ID:
        msg = f"the database in {folder} is not picback's"
        raise UnusableDatabaseError(msg)
    if version > schema.version():
        msg = f"{folder} is of a newer picback: schema {version}, known {schema.version()}"
        raise UnusableDatabaseError(msg)
    if version < oldest:
        msg = f"{folder} has schema {version}, this picback {oldest}; start its serve first"
        raise UnusableDatabaseError(msg)


def _migrate(connection: Connection) -> None:
    connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}").fetchall()
    schema.migrations.apply(sqlite_utils.Database(connection))
    connection.execute(f"PRAGMA user_version={schema.version()}").fetchall()


def _commit(connection: Connection, batch: list[_Operation]) -> None:
    """Run *batch* in one transaction and settle every future, whatever happens."""
    try:
        with _translated():
            results = _run_all(connection, batch)
            connection.execute("COMMIT")
    except BaseException as error:  # noqa: BLE001 - a waiter must never wait for ever
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # a failing disk; the next batch tries again
                connection.execute("ROLLBACK")
        if isinstance(error, StorageFullError) and len(batch) > 1:
            # SQLite undid them all, perhaps over one large image: each by itself, then.
            for operation in batch:
                _commit(connection, [operation])
            return
        for operation in batch:
            operation.done.set_exception(error)
        return
    for operation, result in zip(batch, results, strict=True):
        if isinstance(result, _Refused):
            operation.done.set_exception(result.error)
        else:
            operation.done.set_result(result)


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


@dataclass(frozen=True, slots=True)
class _Refused:
    """An operation undid itself; its neighbours are none the worse."""

    error: Exception


def _run_one(connection: Connection, operation: _Operation) -> Any:
    connection.execute("SAVEPOINT operation")
    try:
        with _translated():
            result = operation.run(connection)
    except Exception as error:
        if not connection.in_transaction:
            raise  # SQLite rolled everything back (disk full): the whole batch failed
        connection.execute("ROLLBACK TO operation")
        connection.execute("RELEASE operation")
        return _Refused(error)
    connection.execute("RELEASE operation")
    return result


@contextmanager
def _translated() -> Iterator[None]:
    """Turn SQLite's errors, by code and never by message, and the file system's into ours."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind
        if code == sqlite3.SQLITE_FULL:
            raise StorageFullError(str(error)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StorageBusyError(str(error)) from error
        if code == sqlite3.SQLITE_NOTADB:
            raise UnusableDatabaseError(str(error)) from error
        raise StorageError(str(error)) from error
    except OSError as error:
        msg = f"cannot use {error.filename}: {error.strerror}"
        raise StorageError(msg) from error
