"""Free space for the database: how much there is, who may use it up, and a reserve.

The reserve is a file that takes up space until that is needed. Writes are of three kinds:

- New data (uploads, queries) is rejected while little is free, and never uses the reserve.
- Ordinary writes are rejected while they could only succeed by using up what the reserve lacks.
- Writes that delete, end work, or give an operator control release it when the disk is full, and
  allocate at once what they leave of it, before another program can take that.

So the reserve shrinks by what the third kind wrote, and grows again when there is space.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from storage.errors import StorageFullError, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds for which a look at the file system is believed.
_LOOK_SECONDS: Final = 1.0
#: The reserve takes at most one part in so many of a small file system.
_MAX_SHARE: Final = 16
#: The reserve grows when so many times what it lacks is free: it does not take the last space of a
#: disk from other programs.
_FREE_TO_GROW: Final = 2
_BLOCK: Final = bytes(1024 * 1024)


@dataclass(frozen=True, slots=True)
class _Space:
    """What one look found, in bytes."""

    #: Free to this process, beyond what the reserve lacks. Negative: less than that is free.
    spare: int
    #: Free to this process.
    free: int
    #: What there is of the reserve, and what there should be.
    reserve: int
    full_reserve: int
    #: Whether new data is rejected.
    is_low: bool

    @property
    def missing(self) -> int:
        """What the reserve lacks."""
        return max(0, self.full_reserve - self.reserve)


class DiskSpace:
    """Decides which writes the file system of a directory has space for. Safe to use from any thread.

    Args:
        directory: Where the database is.
        min_free_bytes: New data needs so much free space; 0: as any other write.
        reserve_bytes: Size of the reserve, at most a sixteenth of the file system; 0: none.
        reusable_bytes: Returns how much space inside the database can be written again, as
            deleted images leave it. It counts as free for new data.
        monotonic: The time in seconds.
        statvfs: As `os.statvfs`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        min_free_bytes: int = 0,
        reserve_bytes: int = 0,
        reusable_bytes: Callable[[], int] = lambda: 0,
        monotonic: Callable[[], float] = time.monotonic,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
    ) -> None:
        self._directory = directory
        self._reserve = directory / "reserve"
        self._min_free_bytes = min_free_bytes
        self._reserve_bytes = reserve_bytes
        self._reusable_bytes = reusable_bytes
        self._monotonic = monotonic
        self._statvfs = statvfs
        self._lock = threading.Lock()
        self._space = _Space(spare=0, free=0, reserve=0, full_reserve=0, is_low=False)
        self._stale_at: float | None = None
        #: What was logged last.
        self._logged_low = self._logged_missing = False

    def require_for_new_data(self) -> None:
        """Reject new data while little space is free.

        Raises:
            StorageFullError: There is too little. Trying again helps when there is more.
        """
        if self._min_free_bytes and self._current().is_low:
            msg = f"less than {self._min_free_bytes:,} bytes are free in {self._directory}"
            raise StorageFullError(msg)

    def require(self) -> None:
        """Reject an ordinary write that could only use up what the reserve gave.

        Raises:
            StorageFullError: It could. Trying again helps when there is more space.
        """
        if self._reserve_bytes and self._current().spare < 0:
            msg = f"what is free in {self._directory} is kept for deleting and for ending work"
            raise StorageFullError(msg)

    def use_reserve(self, operation: Callable[[], T]) -> T:
        """Return what *operation* returns; if it lacks space, release the reserve and repeat it.

        Raises:
            StorageFullError: There was no space even so.
        """
        try:
            return operation()
        except StorageFullError:
            with self.released():
                return operation()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release the reserve for the block, then allocate what is left of it.

        Another process may do the same at the same time.
        """
        size = self._release()
        try:
            yield
        finally:
            with self._lock:
                self._grow(size)

    def maintain(self) -> None:
        """Let the reserve grow if it lacks something and there is space; log what has changed.

        For the one server of the directory, at its start and every few seconds.

        Raises:
            StorageError: The file system cannot be looked at.
        """
        with self._lock:
            space = self._look()
            if space.missing and space.free >= _FREE_TO_GROW * space.missing:
                self._grow(space.full_reserve)
                space = self._look()
            self._take(space)

    def _current(self) -> _Space:
        """Return what was found within the last second."""
        if not self._is_fresh():
            with self._lock:
                if not self._is_fresh():  # no other thread has looked meanwhile
                    self._take(self._look())
        return self._space

    def _is_fresh(self) -> bool:
        stale_at = self._stale_at
        return stale_at is not None and self._monotonic() < stale_at

    def _look(self) -> _Space:
        with translated():
            found = self._statvfs(self._directory)
            reserve = self._size()
        free = found.f_bavail * found.f_frsize
        full = min(self._reserve_bytes, found.f_blocks * found.f_frsize // _MAX_SHARE)
        spare = free - max(0, full - reserve)
        is_low = spare < 0 or (
            spare < self._min_free_bytes and spare + self._reusable_bytes() < self._min_free_bytes
        )
        return _Space(spare=spare, free=free, reserve=reserve, full_reserve=full, is_low=is_low)

    def _take(self, space: _Space) -> None:
        """Believe *space* for a while, and log how it differs from what was logged last."""
        self._space = space
        self._stale_at = self._monotonic() + _LOOK_SECONDS
        is_low = space.is_low and self._min_free_bytes > 0
        if is_low != self._logged_low:
            self._logged_low = is_low
            facts = {"free": space.free, "min_free": self._min_free_bytes}
            if is_low:
                logger.error("storage.space_low", extra=facts)
            else:
                logger.info("storage.space_recovered", extra=facts)
        if space.missing and not self._logged_missing:
            self._logged_missing = True
            facts = {"free": space.free, "missing": space.missing}
            logger.error("storage.reserve_missing", extra=facts)
        elif self._logged_missing and not space.missing and space.free >= space.full_reserve:
            self._logged_missing = False
            logger.info("storage.reserve_allocated", extra={"free": space.free})

    def _size(self) -> int:
        try:
            return self._reserve.stat().st_size
        except FileNotFoundError:
            return 0

    def _release(self) -> int:
        """Remove the reserve, unless another process did so before; return how large it was."""
        with self._lock, translated():
            size = self._size()
            self._reserve.unlink(missing_ok=True)
            self._stale_at = None
        return size

    def _grow(self, size: int) -> None:
        """Make the reserve of *size* bytes, or as large as there is space; it never shrinks."""
        self._stale_at = None
        with suppress(OSError):  # what is missing is seen at the next look
            found = self._statvfs(self._directory)
            size = min(size, self._size() + found.f_bavail * found.f_frsize)
            if size == 0:
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._reserve, flags, 0o600)
            try:
                os.fchmod(descriptor, 0o600)  # an older file may be open to others
                _allocate(descriptor, size)
            finally:
                os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Make a file of *size* bytes whose space nothing else can take."""
    fallocate: Any = getattr(os, "posix_fallocate", None)
    if fallocate is not None:
        fallocate(descriptor, 0, size)
        return
    size -= os.lseek(descriptor, 0, os.SEEK_END)  # macOS: write it
    while size > 0:
        size -= os.write(descriptor, _BLOCK[:size])
