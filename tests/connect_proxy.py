"""A small HTTP proxy for CONNECT, which leads every tunnel to this machine."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ConnectProxy:
    """Serves on a free loopback port while its block runs.

    Args:
        script: Takes the target of a CONNECT and returns what to send instead of connecting; None:
            connect to 127.0.0.1 and the target's port.

    Attributes:
        requests: The head of each request that came, oldest first.
    """

    def __init__(self, script: Callable[[str], bytes | None] = lambda _: None) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        self.requests: list[str] = []

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    @property
    def targets(self) -> list[str]:
        """What each request asked for."""
        return [head.split(" ")[1] for head in self.requests]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(1)  # not a byte of what follows
                if not data:
                    return
                head += data
            self.requests.append(head.decode())
            target = self.targets[-1]
            response = self._script(target)
            if response is not None:
                client.sendall(response)
                if response:
                    return
                client.recv(1)  # silent until the client goes away
                return
            port = int(target.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\nproxy-agent: test\r\n\r\n")
                _pump(client, server)


def _pump(one: socket.socket, other: socket.socket) -> None:
    pairs = {one: other, other: one}
    while True:
        for sock in _readable(pairs):
            data = sock.recv(65536)
            if not data:
                return
            pairs[sock].sendall(data)


def _readable(socks: dict[socket.socket, socket.socket]) -> Iterator[socket.socket]:
    yield from select.select(list(socks), [], [])[0]
