"""One HTTP/1.1 connection: a request goes out, its answer comes in, perhaps another follows.

h11 says what goes over the wire and what came back. The rule a newcomer would break: what comes in
beyond an answer is nobody's, least of all the beginning of the next one, which may be another
caller's; a connection with such bytes is never used again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import h11
import httpx

from dispatcher.local_resources import lack_of, local_resources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.deadline import Deadline
    from dispatcher.stream import DeadlineStream

#: Bytes of an answer's body that are read; the connection is dropped if there are more.
MAX_BODY_BYTES: Final = 64 * 1024

#: Bytes of one answer on the wire, with head, informational answers and chunk framing, after
#: which it is no answer any more.
MAX_ANSWER_BYTES: Final = 256 * 1024

#: Bytes of one head, or of one line of chunk framing.
_MAX_HEAD_BYTES: Final = 64 * 1024


class Origin(NamedTuple):
    """Requests to the same one may share a connection."""

    scheme: str
    host: str
    port: int


class _Length:
    """Stands for so many bytes."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


class Connection:
    """A connection and how far the talk on it has come. One thread at a time.

    Attributes:
        origin: Where it leads.
        opened_at: When it was opened, on the pool's clock.
        idle_since: When its last answer had been read, on the pool's clock.
        received: Bytes of an answer that came in since its request was begun.
    """

    def __init__(self, origin: Origin, stream: DeadlineStream, *, opened_at: float) -> None:
        self.origin = origin
        self.opened_at = opened_at
        self.idle_since = 0.0
        self.received = 0
        self._stream = stream
        self._ended = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)

    def exchange(
        self, request: h11.Request, body: Sequence[bytes], deadline: Deadline
    ) -> httpx.Response:
        """Send a request and return its answer; raises as `GuardedTransport.handle_request`."""
        self._stream.begin(deadline)
        self.received = 0
        try:
            self._send(request, body)
        except TimeoutError:
            raise
        except OSError as exc:
            lack = lack_of(exc)
            if lack is not None:
                raise lack from exc
            # It takes no more: perhaps it has answered already.
            self._http.send_failed()
        try:
            with local_resources():
                return self._receive()
        except h11.RemoteProtocolError as exc:
            if self._ended:  # an answer that breaks off is no breach of the protocol
                raise ConnectionResetError(str(exc)) from exc
            raise

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def is_usable(self) -> bool:
        """Return whether the other side seems to have kept it, too."""
        # Before a request nothing can come in but the end, or bytes that nobody asked for.
        return not self._stream.is_readable()

    def is_done(self) -> bool:
        """Return whether its last request and answer are over, and another may follow."""
        return self._http.our_state is h11.IDLE and self._http.trailing_data == (b"", False)

    def _send(self, request: h11.Request, body: Sequence[bytes]) -> None:
        head = self._http.send(request) or b""
        # h11 only counts what passes by; each piece by itself would cost as much as the head.
        length = _Length(sum(map(len, body)))
        self._http.send_with_data_passthrough(h11.Data(data=length))  # type: ignore[arg-type] # as h11 allows, for sendfile
        self._stream.write([head, *body])
        self._http.send(h11.EndOfMessage())

    def _receive(self) -> httpx.Response:
        while isinstance(head := self._next_event(), h11.InformationalResponse):
            continue
        assert isinstance(head, h11.Response)  # noqa: S101 - h11 lets nothing else come first
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=httpx.ByteStream(self._receive_body()),  # as content it would be unpacked
        )

    def _receive_body(self) -> bytes:
        """Return the body, or its beginning if it is long or the connection ends in it.

        The head has said what became of the request. A receiver that goes away after it has said
        so, and would be called again for want of the rest, would do its work twice.
        """
        body = b""
        try:
            while isinstance(event := self._next_event(), h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    return body
        except ConnectionError:
            return body
        except h11.RemoteProtocolError:
            if self._ended:
                return body
            raise
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return body

    def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._ended:
                msg = "the answer breaks off"
                raise ConnectionResetError(msg)
            if self.received >= MAX_ANSWER_BYTES:
                msg = "the answer does not end"
                raise h11.RemoteProtocolError(msg)
            data = self._stream.read()
            is_first = self.received == 0
            self.received += len(data)
            # Mail and SSH servers greet with a line and wait; h11 would wait with them.
            if is_first and data[:5] != b"HTTP/"[: len(data)]:
                msg = "the answer does not begin like HTTP"
                raise h11.RemoteProtocolError(msg)
            self._ended = not data
            self._http.receive_data(data)
        return event
