"""A server of raw bytes on a free loopback port, and scripts of what no HTTP library would do."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Plays the server's part of one connection.
    Script = Callable[["FaultServer", socket.socket], object]


class FaultServer:
    """Runs a script for each connection, on a thread of its own.

    Use it as a context manager; at its end all connections break and `closing` is set.

    Args:
        script: Gets the server and the connection, which is closed when it returns. It may wait
            with ``server.closing.wait(seconds)``, never with ``sleep``.
        receive_buffer: Bytes that the system takes in without the script; None leaves it to the
            system, which takes megabytes.

    Attributes:
        port: On 127.0.0.1.
        connections: How many connections were accepted.
    """

    def __init__(self, script: Script, *, receive_buffer: int | None = None) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        if receive_buffer is not None:  # connections inherit it
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.closing = threading.Event()
        self.connections = 0

    def __enter__(self) -> FaultServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._threads[0].join()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        for thread in self._threads[1:]:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._run, args=(connection,)))
            self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._script(self, connection)
            except OSError:
                return  # the sender hung up, as it should


def answering(data: bytes, then: Script | None = None) -> Script:
    """Read the request, send *data*, do *then*, close."""

    def script(server: FaultServer, connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(data)
        if then is not None:
            then(server, connection)

    return script


def hang(server: FaultServer, _: socket.socket) -> None:
    """Do nothing until the end."""
    server.closing.wait()


def drip(data: bytes) -> Script:
    """Send *data* for ever, a byte now and then."""

    def script(server: FaultServer, connection: socket.socket) -> None:
        sent = 0
        while not server.closing.wait(0.02):
            connection.sendall(data[sent % len(data) :][:1])
            sent += 1

    return script


def flood(data: bytes) -> Script:
    """Send *data* for ever, as fast as it is taken."""

    def script(server: FaultServer, connection: socket.socket) -> None:
        while not server.closing.is_set():
            connection.sendall(data)

    return script


def reset(_: FaultServer, connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close_one_half(server: FaultServer, connection: socket.socket) -> None:
    """Send no more, but go on listening."""
    connection.shutdown(socket.SHUT_WR)
    server.closing.wait()


def sip(server: FaultServer, connection: socket.socket) -> None:
    """Read for ever, a byte now and then."""
    while not server.closing.wait(0.02):
        _receive(connection, 1)


def read_request(connection: socket.socket) -> bytes:
    """Read one request with a content-length from *connection* and return its body."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += _receive(connection)
    return bytes(body)


def _receive(connection: socket.socket, most: int = 65536) -> bytes:
    data = connection.recv(most)
    if not data:
        msg = "the sender hung up"
        raise ConnectionError(msg)
    return data
