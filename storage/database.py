"""The file, the connection that writes it, and its readers.

Everything that changes the database goes through `Database.write`, as a function of a
connection; a newcomer would break the rule by writing on a reader's connection, which
SQLite refuses because readers are opened with ``mode=ro``.
"""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from storage import driver, schema, sqlite_toolkit
from storage.disk_space import DiskSpace
from storage.errors import (
    FolderInUseError,
    UnusableDatabaseError,
    translated,
)
from storage.group_commit import GroupCommit
from storage.readers import Readers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

Connection: TypeAlias = driver.Connection

T = TypeVar("T")

#: Older ones can corrupt a WAL database when two connections write and checkpoint at the
#: same moment. Source: sqlite.org/wal.html, "The WAL-Reset Bug".
_OLDEST_SQLITE: Final = (3, 51, 3)
#: How long another process (the command line, a backup) may hold the write lock, in seconds.
_BUSY_TIMEOUT: Final = 5.0
#: Most connections that read at the same time, unless told otherwise.
MAX_READERS: Final = 64


class Database:
    """One SQLite file in a data folder, safe to use from any thread.

    `own` is for the one server of a folder: its threads' changes share transactions, so that
    hundreds of callers share one fsync. `beside` is for commands that run next to a server:
    they write in short transactions of their own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        _lock: int | None,
        _max_readers: int = 1,
        _min_free_bytes: int = 0,
        _reserve_bytes: int = 0,
    ) -> None:
        self.folder = folder
        #: How much space there is, and what is kept of it in reserve.
        self.disk_space = DiskSpace(
            folder,
            min_free_bytes=_min_free_bytes,
            reserve_bytes=_reserve_bytes,
            reusable_bytes=self._reusable_bytes,
        )
        self._file = folder / "picback.db"
        self._lock = _lock
        self._readers = Readers(self._connect_reader, most=_max_readers)
        self._closing = threading.Lock()
        self._writer: GroupCommit | None = None

    @classmethod
    def own(
        cls,
        folder: Path,
        *,
        max_readers: int = MAX_READERS,
        min_free_bytes: int = 0,
        reserve_bytes: int = 0,
    ) -> Database:
        """Open the database in *folder* as its only server, creating or migrating it.

        Args:
            folder: The data folder.
            max_readers: Most connections that read, each of `readers.DESCRIPTORS_EACH`. One is
                opened here, so that reading never fails for want of descriptors.
            min_free_bytes: As `DiskSpace` has it.
            reserve_bytes: As `DiskSpace` has it. The reserve is allocated here if there is space
                for it, and released if there is none to open the database.

        Raises:
            FolderInUseError: Another server has it. Trying again helps when that one stops.
            UnusableDatabaseError: Not a picback database, or of a newer version, or this
                Python's SQLite is too old to be trusted with it.
            StorageFullError: There is not enough space, even with the reserve: to migrate a
                database may take as much as it holds.
            StorageError: The folder cannot be written.
        """
        if driver.sqlite_version_info < _OLDEST_SQLITE:
            msg = f"SQLite {driver.sqlite_version} can corrupt databases; install a newer apsw"
            raise UnusableDatabaseError(msg)
        with translated():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _open_lock(folder)
        database = cls(
            folder,
            _lock=lock,
            _max_readers=max_readers,
            _min_free_bytes=min_free_bytes,
            _reserve_bytes=reserve_bytes,
        )
        try:
            with translated():
                _take(lock, folder)
            database._writer = database.disk_space.use_reserve(database._open_writer)
            database.disk_space.maintain()
        except BaseException:
            database.close()
            raise
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
            database.disk_space.use_reserve(database._check_beside)
        except BaseException:
            database.close()
            raise
        return database

    def is_served(self) -> bool:
        """Tell whether a server owns the folder now.

        Raises:
            StorageError: The folder cannot be looked into.
        """
        with translated():
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
        with translated():
            reader = self._readers.take()
            try:
                return list(reader.execute(sql, parameters).fetchall())
            finally:
                self._readers.give_back(reader)

    def write(
        self,
        operation: Callable[[Connection], T],
        *,
        size_bytes: int = 0,
        uses_reserve: bool = False,
    ) -> T:
        """Run *operation* in a transaction; return its result when that is on disk.

        The operation may raise: its own changes are then undone, nobody else's. It may run
        on another thread that writes, and must not block.

        Args:
            operation: Called with the writer's connection; called again if what it did was
                undone because the disk was full, or because another one in its transaction
                raised. Its statements with RETURNING must be fetched to the end, or SQLite
                does not commit them.
            size_bytes: About how many bytes it writes, to bound what shares a commit.
            uses_reserve: Whether it must succeed on a full disk, by the space of the reserve. For
                what deletes, ends work, or gives an operator control; never for what a caller
                can repeat to store more.

        Raises:
            StorageFullError: Nothing was written; trying again helps when there is space.
            StorageBusyError: Nothing was written; trying again helps.
            StorageError: Nothing was written.
        """
        run = operation if uses_reserve else self._leaving_reserve(operation)
        if self._writer is not None:
            return self._writer.write(run, size_bytes=size_bytes, uses_reserve=uses_reserve)
        if uses_reserve:
            return self.disk_space.use_reserve(lambda: self._write_directly(run))
        return self._write_directly(run)

    def truncate_log(self) -> bool:
        """Copy the write-ahead log into the file and empty it, with the old pages that it holds.

        Returns:
            Whether it is empty now: it cannot be emptied while another process reads.
        """
        connection = self._connect_writer()
        try:
            with translated():
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]
        finally:
            connection.close()
        return not busy

    def close(self) -> None:
        """Finish what was asked for, then close the file and give up the folder."""
        with self._closing:
            if self._writer is not None:
                self._writer.finish()
            try:
                # Before the writer's: the connection closed last tidies the log away.
                self._readers.close()
                if self._writer is not None:
                    self._writer.close()
            finally:
                if self._lock is not None:
                    os.close(self._lock)
                    self._lock = None

    def _leaving_reserve(self, operation: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """Return *operation*, rejected if it would use up what the reserve gave by then."""

        def run(connection: Connection) -> T:
            self.disk_space.require()
            return operation(connection)

        return run

    def _reusable_bytes(self) -> int:
        """Return how many bytes of the file new rows can use without making it longer."""
        (pages,), (page_size,) = (
            self.read(f"PRAGMA {name}")[0] for name in ("freelist_count", "page_size")
        )
        return int(pages) * int(page_size)

    def _open_writer(self) -> GroupCommit:
        with translated():
            connection = self._connect_writer()
            try:
                self._file.chmod(0o600)  # it holds secrets, whatever the umask is
                _migrate(connection)
                self._readers.give_back(self._readers.take())
            except BaseException:
                connection.close()
                raise
        return GroupCommit(connection, with_reserve=self.disk_space.released)

    def _check_beside(self) -> None:
        with translated():
            reader = self._readers.take()
            self._readers.give_back(reader)
            _check(reader, self.folder, oldest=schema.version())

    def _write_directly(self, operation: Callable[[Connection], T]) -> T:
        connection = self._connect_writer()
        try:
            # The server checkpoints; two who do can collide.
            connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
            return GroupCommit(connection).write(operation)
        finally:
            connection.close()

    def _connect_writer(self) -> Connection:
        with translated():
            connection = driver.connect(self._file, timeout=_BUSY_TIMEOUT)
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
                    "temp_store=MEMORY",  # APSW's default puts temporary data into files
                    "cache_size=-65536",
                ):
                    connection.execute(f"PRAGMA {pragma}").fetchall()
            except BaseException:
                connection.close()
                raise
            return connection

    def _connect_reader(self) -> Connection:
        connection = driver.connect(self._file, timeout=_BUSY_TIMEOUT, read_only=True)
        try:
            for sql in (
                "PRAGMA query_only=ON",
                "PRAGMA temp_store=MEMORY",
                # Many of them read, and what a file holds is in the system's cache anyway.
                "PRAGMA cache_size=-512",
                "SELECT count(*) FROM sqlite_schema",  # opens the write-ahead log, too
            ):
                connection.execute(sql).fetchall()
        except BaseException:
            connection.close()
            raise
        return connection


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
    connection.cursor_factory = driver.FetchedCursor
    schema.migrations.apply(sqlite_toolkit.Database(connection))  # type: ignore[arg-type] # it acts as the DB-API's
    connection.cursor_factory = driver.Cursor
    connection.execute(f"PRAGMA user_version={schema.version()}").fetchall()
