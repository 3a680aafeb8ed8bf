"""A receiver of callbacks for tests: a real HTTP/1.1 server on a free loopback port."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import standardwebhooks

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping


class Answer(NamedTuple):
    """What a receiver answers; a plain tuple of the same will do."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it came in, its header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.time)

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)

    def verify(self, *secrets: str) -> None:
        """Check the signature against each ``whsec_`` secret, with the public library."""
        for secret in secrets:
            standardwebhooks.Webhook(secret).verify(self.body, dict(self.headers), json_parse=False)


class Receiver:
    """Receives requests, remembers them, and answers by script.

    Use it as a context manager; it serves from the first line of the block to the last.

    Args:
        answers: Given out in turn, then 200 for ever; or a function of each request, which may
            block to play a slow receiver.
        ssl_context: Serve HTTPS with it.

    Attributes:
        requests: What came in, oldest first.
        connections: How many connections were accepted.
    """

    def __init__(
        self,
        answers: Iterable[tuple[int, Mapping[str, str], bytes]]
        | Callable[[Received], tuple[int, Mapping[str, str], bytes]] = (),
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        script = iter(() if callable(answers) else answers)
        self._answer = answers if callable(answers) else lambda _: next(script, Answer())
        self._changed = threading.Condition()
        self.requests: list[Received] = []
        self.connections = 0
        self._server = _Server(self)
        self._scheme = "http" if ssl_context is None else "https"
        if ssl_context is not None:
            self._server.socket = ssl_context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        """The port, the same for the receiver's whole life."""
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        """HOST:PORT, as ``--allow-callback`` takes it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """A URL that is received here."""
        return f"{self._scheme}://{self.address}/callback"

    def wait_for(self, count: int, *, timeout: float = 30) -> list[Received]:
        """Return all requests as soon as there are *count* of them.

        Raises:
            TimeoutError: There are fewer after *timeout* seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout):
                msg = f"{len(self.requests)} requests after {timeout} s, not {count}"
                raise TimeoutError(msg)
            return list(self.requests)

    def drop_connections(self) -> None:
        """Close all connections from this side, as a restarting server does."""
        self._server.drop_connections()

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.drop_connections()
        self._server.server_close()

    def note_connection(self) -> None:
        """Count one more connection; for the server's threads."""
        with self._changed:
            self.connections += 1

    def receive(self, request: Received) -> tuple[int, Mapping[str, str], bytes]:
        """Remember *request* and return the answer; for the server's threads."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return self._answer(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 128

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        self.receiver.note_connection()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(
                    socket.SHUT_RDWR
                )  # wakes the thread that reads from it, which closes it
            except OSError:
                continue  # the other side was faster

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: senders that hang up or refuse a certificate are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        body = self.rfile.read(length)
        if len(body) < length:  # the sender died in the middle of it
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Received(method=self.command, path=self.path, headers=headers, body=body)
        status, answer_headers, answer_body = self.server.receiver.receive(request)
        self.send_response(status)
        for name, value in answer_headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer_body)))
        self.end_headers()
        self.wfile.write(answer_body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Say nothing."""
