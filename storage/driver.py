"""SQLite through APSW, with the part of Python's DB-API that this package and sqlite-utils use.

APSW ships a current SQLite in its wheels for every platform, Linux on ARM included. It runs in
autocommit mode only: a transaction begins with a BEGIN statement, as this package writes them.
No other SQLite library may open the database in this process: POSIX locks belong to the process,
and a second copy of the library that closes the file releases the locks of the first. Source:
sqlite.org/howtocorrupt.html, "Multiple copies of SQLite linked into the same application".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import apsw

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

sqlite_version: Final = apsw.sqlite_lib_version()
sqlite_version_info: Final = tuple(int(part) for part in sqlite_version.split("."))

# The DB-API's exceptions. APSW has one class for each of SQLite's result codes instead.
Error = apsw.Error
OperationalError = apsw.SQLError
IntegrityError = apsw.ConstraintError


class NotSupportedError(apsw.Error):
    """Never raised: APSW supports all that is used."""


complete_statement = apsw.complete

# The primary result codes that callers tell apart.
BUSY: Final = apsw.SQLITE_BUSY
CANTOPEN: Final = apsw.SQLITE_CANTOPEN
LOCKED: Final = apsw.SQLITE_LOCKED
NOMEM: Final = apsw.SQLITE_NOMEM
NOTADB: Final = apsw.SQLITE_NOTADB


def result_code(error: apsw.Error) -> int:
    """Return SQLite's primary result code; 0 for an error of APSW's own, such as a closed connection."""
    return getattr(error, "result", 0)


def is_full(error: apsw.Error) -> bool:
    """Return whether the disk had no space, be it for the shared memory of the write-ahead log."""
    is_shm = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE
    return is_shm or result_code(error) == apsw.SQLITE_FULL


#: Prepared statements kept by each connection; a server prepares fewer than that.
_STATEMENT_CACHE_SIZE: Final = 128


class Cursor(apsw.Cursor):
    """A cursor that reports what its statement changed; ask before the next statement runs."""

    #: The number of rows that executemany changed; None after a single statement.
    _total: int | None = None

    if TYPE_CHECKING:  # a row is what the statement selects

        def fetchall(self) -> list[Any]:
            """Return the rows that are left."""

    @property
    def rowcount(self) -> int:
        """Return how many rows the connection's last statement inserted, updated or deleted."""
        return self.connection.changes() if self._total is None else self._total

    @property
    def lastrowid(self) -> int:
        """Return the rowid of the connection's last INSERT."""
        return self.connection.last_insert_rowid()


class FetchedCursor(Cursor):
    """A cursor for sqlite-utils: it fetches at once and knows its columns.

    sqlite-utils reads `description` after the last row, and opens savepoints while a cursor with
    rows left is still referenced. APSW allows neither.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        super().__init__(connection)
        self.columns: tuple[Any, ...] | None = None
        self._rows: Any = None
        # Not a bound method: the reference cycle would keep the statement open.
        self.exec_trace = _record_columns

    def execute(self, *arguments: Any, **options: Any) -> FetchedCursor:
        """Run the statement and fetch all of its rows."""
        self._rows = None
        super().execute(*arguments, **options)
        self._rows = iter(super().fetchall())
        return self

    @property
    def description(self) -> Any:  # type: ignore[override] # APSW's is an attribute
        """Return the columns, None for a statement without any."""
        return self.columns

    def __next__(self) -> Any:
        # APSW's own fetchall comes through here while `execute` runs.
        return super().__next__() if self._rows is None else next(self._rows)

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        return list(self._rows)


def _record_columns(cursor: Any, _sql: str, _bindings: Any) -> bool:
    cursor.columns = cursor.get_description() or None
    return True


class Connection(apsw.Connection):
    """A connection in autocommit mode."""

    #: sqlite-utils reads and sets it; None means autocommit in Python's sqlite3.
    isolation_level: str | None = None

    def __init__(self, file: str, flags: int, vfs: str | None, timeout: float) -> None:
        super().__init__(file, flags, vfs, _STATEMENT_CACHE_SIZE)
        self.cursor_factory = Cursor
        self.set_busy_timeout(int(timeout * 1000))

    if TYPE_CHECKING:  # APSW's stubs do not know what cursor_factory makes

        def execute(self, statements: str, bindings: Any = (), **options: Any) -> Cursor:
            """Run a statement."""

    def executemany(self, statements: str, rows: Iterable[Any], **_: Any) -> Cursor:  # type: ignore[override] # fewer options than APSW has
        """Run a statement once for each of *rows*; the cursor's rowcount is their sum."""
        before = self.total_changes()
        cursor: Any = super().executemany(statements, rows)
        cursor._total = self.total_changes() - before  # noqa: SLF001 - a class of this module
        return cursor  # type: ignore[no-any-return]

    def executescript(self, script: str) -> Cursor:
        """Run several statements."""
        cursor: Any = self.execute(script)
        return cursor  # type: ignore[no-any-return]

    def commit(self) -> None:
        """Commit, if a transaction is open."""
        if self.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        """Roll back, if a transaction is open."""
        if self.in_transaction:
            self.execute("ROLLBACK")


def connect(
    database: str | PathLike[str],
    *,
    timeout: float = 5.0,
    read_only: bool = False,
    vfs: str | None = None,
    factory: type[Connection] = Connection,
) -> Connection:
    """Open a database file, creating it unless *read_only*.

    Args:
        database: Its path.
        timeout: How long a statement waits for another process's lock, in seconds.
        read_only: Open an existing file for reading only.
        vfs: The file system to use, by SQLite's name; tests simulate power cuts by it.
        factory: The class of the connection.

    Raises:
        Error: The file cannot be opened.
    """
    flags = (
        apsw.SQLITE_OPEN_READONLY
        if read_only
        else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    )
    return factory(str(database), flags, vfs, timeout)
