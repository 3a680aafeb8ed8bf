"""A socket whose every operation ends by one deadline, however the other side behaves."""

from __future__ import annotations

import select
import ssl
from typing import TYPE_CHECKING

import httpcore
import httpx

if TYPE_CHECKING:
    import socket

    from dispatcher.deadline import Deadline

#: Bytes of one answer on the wire, with head, informational answers and chunk framing, after
#: which it is no answer any more. The body alone is cut much earlier (see `deliverer`).
MAX_ANSWER_BYTES = 256 * 1024


class TlsError(httpx.ConnectError):
    """There is no TLS connection that proves the receiver's name. The text is OpenSSL's."""

    def __init__(self, cause: ssl.SSLError) -> None:
        """Take the words from *cause*, without the source lines that it may name."""
        verify_message = getattr(cause, "verify_message", None)  # SSLCertVerificationError only
        reason = (cause.reason or "handshake failure").replace("_", " ").lower()
        super().__init__(verify_message or reason)


class DeadlineStream(httpcore.NetworkStream):
    """What `httpcore.HTTP11Connection` reads from and writes to.

    httpcore's own timeouts are ignored: they start anew with each operation, so that a receiver
    that sends a byte now and then is never late. One thread at a time.

    Attributes:
        received: Bytes that came in since `begin`.
        ended: The receiver has closed its side.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket = sock
        self.ended = False
        self.begin(deadline)

    def begin(self, deadline: Deadline) -> None:
        """Start a request and its answer, both to be over by *deadline*."""
        self._deadline = deadline
        self.received = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - see class
        """Return what has come in, waiting for something; nothing at the end.

        Raises:
            httpx.TransportError: It failed; the subclass tells how.
        """
        if self.received >= MAX_ANSWER_BYTES:
            msg = "the answer does not end"
            raise httpx.RemoteProtocolError(msg)
        self._socket.settimeout(self._deadline.left())
        try:
            data = self._socket.recv(max_bytes)
        except TimeoutError as exc:
            raise httpx.ReadTimeout(str(exc)) from exc
        except ssl.SSLError as exc:  # TLS 1.3 refuses a client only now
            raise TlsError(exc) from exc
        except OSError as exc:
            raise httpx.ReadError(str(exc)) from exc
        is_first = self.received == 0
        self.received += len(data)
        self.ended = not data
        # Mail and SSH servers greet with a line and wait; h11 would wait with them.
        if is_first and data[:5] != b"HTTP/"[: len(data)]:
            msg = "the answer does not begin like HTTP"
            raise httpx.RemoteProtocolError(msg)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - see class
        """Send all of *buffer*.

        Raises:
            httpcore.WriteError: The receiver takes no more. httpcore then looks for an answer,
                which may have come early.
            httpx.TransportError: It failed otherwise.
        """
        unsent = memoryview(buffer)
        while unsent:
            self._socket.settimeout(self._deadline.left())
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except TimeoutError as exc:
                raise httpx.WriteTimeout(str(exc)) from exc
            except OSError as exc:
                raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def is_readable(self) -> bool:
        """Return whether something came in, or the other side closed; never waits."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))
