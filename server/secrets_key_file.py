"""The file with the keys that encrypt signing secrets: read with suspicion, made with care.

One key a line, 32 bytes in base64: the first encrypts, the others only decrypt what was encrypted
before. The rule a newcomer would break: it never lies in the data folder, since a copy of that
would then give away what it is there to keep.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from callers.secret_files import SecretFileError
from storage.sealing import KEY_BYTES, Sealer

if TYPE_CHECKING:
    from pathlib import Path

#: Files that are longer hold something else, in bytes.
_MAX_BYTES: Final = 10_000
_OPEN_TO_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_sealer(path: Path | None, *, data: Path) -> Sealer:
    """Return what encrypts with the keys in *path*; None: nothing is encrypted.

    Raises:
        SecretFileError: It cannot be read, holds anything but keys, lies in the folder *data*,
            or could have been read or changed by others.
    """
    if path is None:
        return Sealer()
    if path.resolve().is_relative_to(data.resolve()):
        msg = f"{path}: lies in the data folder, whose copies must not carry it; move it elsewhere"
        raise SecretFileError(msg)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise SecretFileError(msg) from error
    if not is_private(status, user=os.geteuid()):
        msg = f"{path}: other users could read or change it; make it yours alone, with mode 600"
        raise SecretFileError(msg)
    return Sealer(_keys(path, content))


def is_private(status: os.stat_result, *, user: int) -> bool:
    """Tell whether a file is *user*'s alone.

    One that root owns may also be read by its group: so a file is lent to a service without
    giving it away. PostgreSQL has the same rule for private keys.
    """
    if status.st_uid == user:
        return not status.st_mode & _OPEN_TO_OTHERS
    return status.st_uid == 0 and not status.st_mode & (_OPEN_TO_OTHERS & ~stat.S_IRGRP)


def _keys(path: Path, content: bytes) -> list[bytes]:
    lines = content.splitlines() if len(content) <= _MAX_BYTES else []
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key = base64.b64decode(line.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            msg = f"{path}, line {number}: is not a key, {KEY_BYTES} bytes in base64"
            raise SecretFileError(msg)
        keys.append(key)
    if not keys:
        msg = f"{path}: holds no keys; picback keys new-secrets-key-file makes such a file"
        raise SecretFileError(msg)
    return keys


def write_new_key(path: Path) -> Sealer:
    """Make a file with a new key that its owner alone can read; return what encrypts with it.

    It is on disk when this returns: what is encrypted with it from then on would be lost
    without it.

    Raises:
        SecretFileError: There is such a file already, or it cannot be written.
    """
    key = secrets.token_bytes(KEY_BYTES)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise SecretFileError(msg) from error
    return Sealer([key])
