"""One child process: started, talked to, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from analysis.processes import messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Where the packages are that a child imports.
_ROOT: Final = Path(__file__).parents[2]
#: Most bytes of a child's response: two small JPEGs.
_MAX_RESPONSE_BYTES: Final = 16_000_000
#: How a child's C library handles memory: large blocks go back to the system when freed,
#: and there is one arena, since a child works in one thread. See mallopt(3).
_MALLOC: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "8388608",
}
#: Variables that a child needs to run at all. All others stay with the server: they hold secrets.
_KEPT_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


class ChildStartError(Exception):
    """The system cannot start a process now."""


class ChildDiedError(Exception):
    """The child ended, or had to be ended, before it responded.

    Attributes:
        exit_code: As `subprocess.Popen.returncode`: negative for a signal.
        was_late: Whether it had to be ended because it did not respond in time.
        was_garbled: Whether it had to be ended because its response was none.
    """

    def __init__(
        self, exit_code: int, *, was_late: bool = False, was_garbled: bool = False
    ) -> None:
        reason = "no response in time" if was_late else describe_exit(exit_code)
        super().__init__("a garbled response" if was_garbled else reason)
        self.exit_code = exit_code
        self.was_late = was_late
        self.was_garbled = was_garbled

    @property
    def used_up_its_cpu_time(self) -> bool:
        """Whether it was ended by `limits.limit_cpu`."""
        return self.exit_code == -signal.SIGPROF

    @property
    def was_ended_from_outside(self) -> bool:
        """Whether it may have been ended by a person, a supervisor, or for lack of memory."""
        return not self.was_garbled and self.exit_code in {
            -signal.SIGKILL,
            -signal.SIGTERM,
            -signal.SIGHUP,
        }


def describe_exit(exit_code: int) -> str:
    """Return how a process ended, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-exit_code).name}"
    return f"signal {-exit_code}"


class Child:
    """A running child process. One thread at a time may talk to it; any may end it.

    Args:
        module: What it runs, `python -m`.
        arguments: Its command line.

    Raises:
        ChildStartError: There are too few processes, descriptors or too little memory.
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {"PYTHONPATH": str(_ROOT), **_MALLOC}
        try:
            self._socket, theirs = socket.socketpair()
        except OSError as error:
            raise ChildStartError(str(error)) from error
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    [sys.executable, "-P", "-m", module, str(os.getpid()), *arguments],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # C libraries write what files tell them to
                    env=environment,
                    cwd="/",
                    process_group=0,  # Ctrl-C is for the server
                )
            except OSError as error:
                self._socket.close()
                raise ChildStartError(str(error)) from error
        self._lock = threading.Lock()
        self._is_reaped = False

    @property
    def process_id(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs, as far as the system says."""
        with self._lock:
            return not self._is_reaped and self._process.poll() is None

    def exchange(
        self, fields: Mapping[str, Any], blobs: Sequence[bytes] = (), *, timeout: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Send a request and return the response.

        Raises:
            ChildDiedError: There is none; the child is ended.
        """
        deadline = time.monotonic() + timeout
        return self._talk(deadline, fields, blobs)

    def receive(self, *, timeout: float) -> dict[str, Any]:
        """Return the message that a child sends when it is ready.

        Raises:
            ChildDiedError: There is none; the child is ended.
        """
        fields, _ = self._talk(time.monotonic() + timeout, None, ())
        return fields

    def _talk(
        self, deadline: float, fields: Mapping[str, Any] | None, blobs: Sequence[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        try:
            connection = _DeadlineSocket(self._socket, deadline)
            if fields is not None:
                messages.send(connection, fields, blobs)  # type: ignore[arg-type]
            return messages.receive(connection, max_blob_bytes=_MAX_RESPONSE_BYTES)  # type: ignore[arg-type]
        except TimeoutError:
            raise ChildDiedError(self.end(), was_late=True) from None
        except messages.MessageError:
            raise ChildDiedError(self.end(), was_garbled=True) from None
        except (OSError, EOFError):
            # A child whose socket broke is ending, and tells by its exit code why.
            raise ChildDiedError(self.end(grace=1.0)) from None

    def kill(self) -> None:
        """End it at once, from any thread; a thread that waits for it gets a `ChildDiedError`."""
        with self._lock:
            if not self._is_reaped:
                self._process.kill()

    def end(self, *, grace: float = 0.0) -> int:
        """End it, after *grace* seconds to end by itself; return its exit code."""
        self._socket.close()
        try:
            code = self._process.wait(grace) if grace else None
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            self._process.kill()
            code = self._process.wait()
        with self._lock:
            self._is_reaped = True
        return code


class _DeadlineSocket:
    """A socket whose operations end at a common deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._set_timeout()
        self._connection.sendall(data)

    def recv_into(self, buffer: memoryview) -> int:
        self._set_timeout()
        return self._connection.recv_into(buffer)

    def _set_timeout(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)
