"""A simulated power cut: the shipped storage code on a disk that forgets what was not synced.

SQLite runs on a virtual file system that writes down every write and sync. A cut at any point
of that record gives the files as a disk may hold them then: all that was synced, and of the rest
each sector kept, lost or garbled by chance. What a caller was told before the cut must be there.

The storage code and its driver are the shipped ones; only the file system beneath them differs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import apsw

from storage import driver

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

#: What a disk writes as one. Source: the smallest in use; larger ones lose less.
_SECTOR: Final = 512


@dataclass(slots=True)
class Disk:
    """A record of everything that was written, synced and acknowledged, in order."""

    #: File name -> its content when the record began.
    initial: dict[str, bytes]
    record: list[tuple[Any, ...]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, *entry: Any) -> None:
        """Add an entry.

        One of ("write", file, offset, data), ("truncate", file, size), ("sync", file),
        ("delete", file) and ("told", what).
        """
        with self._lock:
            self.record.append(entry)

    def told(self, before: int) -> set[str]:
        """Return what callers were told before entry *before*."""
        return {entry[1] for entry in self.record[:before] if entry[0] == "told"}

    def after_cut(self, at: int, chance: random.Random, folder: Path) -> None:
        """Write the files into *folder* as the disk may hold them after a cut at entry *at*."""
        files = {name: bytearray(content) for name, content in self.initial.items()}
        last_sync = {
            entry[1]: index for index, entry in enumerate(self.record[:at]) if entry[0] == "sync"
        }
        for index, (kind, *rest) in enumerate(self.record[:at]):
            if kind in ("told", "sync"):
                continue
            name = rest[0]
            content = files.setdefault(name, bytearray())
            synced = index < last_sync.get(name, -1)
            if kind == "delete":
                files.pop(name)
            elif kind == "truncate":
                if synced or chance.random() < 0.5:
                    del content[rest[1] :]
            else:
                _write(content, rest[1], rest[2], None if synced else chance)
        for name, content in files.items():
            (folder / name).write_bytes(content)


def _write(content: bytearray, offset: int, data: bytes, chance: random.Random | None) -> None:
    for start in range(0, len(data), _SECTOR):
        sector = data[start : start + _SECTOR]
        if chance is not None:
            fate = chance.random()
            if fate < 0.4:
                continue  # lost
            if fate < 0.5:
                sector = chance.randbytes(len(sector))  # torn
        place = offset + start
        if len(content) < place:
            content.extend(bytes(place - len(content)))
        content[place : place + len(sector)] = sector


class RecordingVfs(apsw.VFS):
    """SQLite's own file system, with every write and sync noted on a disk's record."""

    def __init__(self, name: str, disk: Disk) -> None:
        self._disk = disk
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return _RecordingFile(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001, N802
        self._disk.note("delete", filename.rpartition("/")[2])
        super().xDelete(filename, syncdir)


class _RecordingFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = (path or "temporary").rpartition("/")[2]
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.note("write", self._name, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._disk.note("truncate", self._name, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._disk.note("sync", self._name)


class OtherDisk:
    """As much of `storage.driver` as `storage.database` uses, over another file system.

    *pragmas* are set after those of the storage code, so that a test can weaken it on purpose.
    """

    sqlite_version_info = driver.sqlite_version_info

    def __init__(self, vfs: str, *, pragmas: Iterable[str] = ()) -> None:
        self._vfs = vfs
        self._pragmas = tuple(pragmas)

    def connect(self, database: Any, **options: Any) -> driver.Connection:
        """Open a database as the driver would."""
        connection = driver.connect(database, vfs=self._vfs, factory=_Weakened, **options)
        connection.after_all = self._pragmas  # type: ignore[attr-defined]
        return connection


class _Weakened(driver.Connection):
    after_all: tuple[str, ...] = ()

    def execute(self, statements: str, *arguments: Any, **options: Any) -> Any:
        """As ever; after the last of the storage code's pragmas come the test's."""
        cursor = super().execute(statements, *arguments, **options)
        if statements.startswith("PRAGMA cache_size"):
            for pragma in self.after_all:
                super().execute(f"PRAGMA {pragma}").fetchall()
        return cursor
