"""A socket whose every operation ends by one deadline, however the other side behaves."""

from __future__ import annotations

import select
import ssl
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from dispatcher.deadline import Deadline

#: Bytes that are taken from the network at once.
_READ_BYTES: Final = 64 * 1024


class DeadlineStream:
    """What `transport` reads answers from and writes requests to. One thread at a time.

    A timeout of the socket alone would start anew with each operation, so that a receiver that
    sends a byte now and then is never late.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket = sock
        self.begin(deadline)

    def begin(self, deadline: Deadline) -> None:
        """Start a request and its answer, both to be over by *deadline*."""
        self._deadline = deadline

    def read(self) -> bytes:
        """Return what has come in, waiting for something; nothing at the end.

        Raises:
            TimeoutError: The deadline came first.
            ssl.SSLError: TLS 1.3 refuses a client only now.
            OSError: The connection broke.
        """
        self._socket.settimeout(self._deadline.left())
        return self._socket.recv(_READ_BYTES)

    def write(self, pieces: Iterable[bytes]) -> None:
        """Send all of *pieces*, one after the other.

        Raises:
            TimeoutError: The receiver did not take it all by the deadline.
            OSError: It takes no more. It may have answered early.
        """
        unsent = deque(memoryview(piece) for piece in pieces if piece)
        while unsent:
            self._socket.settimeout(self._deadline.left())
            sent = self._send(unsent)
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.popleft())
            if sent:
                unsent[0] = unsent[0][sent:]

    def _send(self, pieces: Sequence[memoryview]) -> int:
        """Send some of *pieces*; return how many bytes."""
        if isinstance(self._socket, ssl.SSLSocket):  # it cannot send several at once
            return self._socket.send(pieces[0])
        return self._socket.sendmsg(pieces)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def is_readable(self) -> bool:
        """Return whether something came in, or the other side closed; never waits."""
        number = self._socket.fileno()
        if number < 0:  # closed by us
            return True
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return bool(poll.poll(0))
