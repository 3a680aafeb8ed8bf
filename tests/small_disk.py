"""A disk of a few megabytes that really gets full, for whoever may run tests.

It is a tmpfs in a user and mount namespace of its own, so it needs no root and leaves no mount
behind. Linux only; `unshare`, `nsenter` and `mount` are util-linux's.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Mounts a disk of $0 bytes at $1, then keeps the namespace until stdin ends.
_HOLD: Final = 'mount -t tmpfs -o "size=$0,mode=700" tmpfs "$1" && echo mounted && exec cat'


class SmallDisk:
    """A file system of *size_bytes*. Use it as a context manager.

    Args:
        mount_point: A folder to be made, where processes inside find the disk.
        size_bytes: In whole pages.

    Attributes:
        folder: The same place for this process, which is outside.
    """

    def __init__(self, mount_point: Path, *, size_bytes: int) -> None:
        self._mount_point = mount_point
        self._size_bytes = size_bytes
        self.folder = mount_point

    def __enter__(self) -> SmallDisk:
        self._mount_point.mkdir()
        arguments = [_HOLD, str(self._size_bytes), str(self._mount_point)]
        self._holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            self.__exit__()
            msg = "this machine lets its users have no namespaces (see user_namespaces(7))"
            raise OSError(msg)
        root = Path(f"/proc/{self._holder.pid}/root")
        self.folder = root / self._mount_point.relative_to("/")
        return self

    def __exit__(self, *_: object) -> None:
        with self._holder:
            assert self._holder.stdin is not None
            self._holder.stdin.close()

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs *command* where the disk is mounted."""
        namespaces = ["--user", "--mount", "--preserve-credentials"]
        return ["nsenter", *namespaces, "--target", str(self._holder.pid), "--", *command]

    def fill(self, *, leaving: int = 0) -> None:
        """Take up all the space that is left, to the last byte or but for *leaving* bytes."""
        ballast = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            while leaving == 0 or self._free_bytes() > leaving:
                os.write(ballast, bytes(65_536))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(ballast)

    def make_room(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink()

    def _free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"
