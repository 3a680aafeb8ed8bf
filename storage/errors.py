"""What storage refuses, and why: each docstring is a sentence that users may read."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from storage import driver

if TYPE_CHECKING:
    from collections.abc import Iterator


class StorageError(Exception):
    """The database could not do what was asked; nothing was changed."""


class StorageFullError(StorageError):
    """The disk is full, or nearly; nothing was stored. Try again when there is more space."""


class StorageBusyError(StorageError):
    """The database did not answer in time; nothing was stored. Try again."""


class FolderInUseError(StorageError):
    """Another picback serve owns this data folder."""


class UnusableDatabaseError(StorageError):
    """The data folder holds no database that this version of picback can use."""


class SealError(StorageError):
    """A signing secret cannot be decrypted, or must not be stored as it is asked for."""


class RequestIdReusedError(Exception):
    """This request_id was used before, for another request."""


class ImageNotFoundError(Exception):
    """There is no image with this id."""


class QueryNotFoundError(Exception):
    """There is no query with this id."""


class StateConflictError(Exception):
    """The query's state forbids it."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the query is {state}")
        self.state = state


class RedeliveryLimitError(Exception):
    """Too many attempts of the query started within the last minute."""

    def __init__(self, *, retry_after_ms: int) -> None:
        super().__init__("too many attempts of the query started within the last minute")
        self.retry_after_ms = retry_after_ms


class KeyNotFoundError(Exception):
    """There is no such API key."""


class KeyNameTakenError(Exception):
    """An API key of this name exists; names are unique among keys that are not revoked."""


#: Another process holds a lock; or this machine lacks descriptors or memory.
_PASSING: Final = frozenset(
    {
        driver.BUSY,
        driver.LOCKED,
        driver.CANTOPEN,
        driver.NOMEM,
    }
)
#: What the file system says when nothing more can be written.
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLite's errors, by code and never by message, and the file system's into ours."""
    try:
        yield
    except driver.Error as error:
        code = driver.result_code(error)
        if driver.is_full(error):
            raise StorageFullError(str(error)) from error
        if code in _PASSING:
            raise StorageBusyError(str(error)) from error
        if code == driver.NOTADB:
            raise UnusableDatabaseError(str(error)) from error
        raise StorageError(str(error)) from error
    except OSError as error:
        msg = f"cannot use {error.filename}: {error.strerror}"
        raise (StorageFullError if error.errno in _NO_SPACE else StorageError)(msg) from error
