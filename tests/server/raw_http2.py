"""HTTP/2 by hand, for clients that do what no gRPC library would."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def calls_that_take_no_answer(
    port: int,
    paths: Sequence[str],
    *,
    metadata: Sequence[tuple[str, str]] = (),
    message: bytes = b"",
) -> socket.socket:
    """Call each of *paths* with *message*, and leave no room for a byte of an answer."""
    connection = socket.create_connection(("127.0.0.1", port))
    body = b"\0" + struct.pack(">I", len(message)) + message
    connection.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0))
        + b"".join(
            _frame(_HEADERS, _END_HEADERS, stream, _headers(path, metadata))
            + _frame(_DATA, _END_STREAM, stream, body)
            for stream, path in zip(range(1, 2 * len(paths), 2), paths, strict=True)
        )
    )
    return connection


class SilentCalls(asyncio.Protocol):
    """Calls that send their headers and nothing else, and are opened again whenever they end.

    Args:
        paths: Of the calls, one for each that is to be open.
        metadata: Of every call.
    """

    def __init__(self, paths: Sequence[str], *, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._opening = {path: _headers(path, metadata) for path in paths}
        self._waiting = list(paths)
        self._open: dict[int, str] = {}
        self._streams = itertools.count(1, 2)
        self._received = b""
        #: How many calls were opened until now.
        self.opened = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
        self._open_all()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3])
            if len(self._received) < 9 + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
            payload, self._received = self._received[9 : 9 + length], self._received[9 + length :]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
            path = self._open.pop(stream, None)
            if path is not None:
                self._waiting.append(path)
                if kind == _HEADERS:  # gRPC's other half of the stream is still open
                    self._transport.write(_frame(_RST_STREAM, 0, stream, struct.pack(">I", 8)))
                self._open_all()
        elif kind == _GOAWAY:
            self._transport.close()

    def _open_all(self) -> None:
        frames = []
        for path in self._waiting:
            stream = next(self._streams)
            self._open[stream] = path
            frames.append(_frame(_HEADERS, _END_HEADERS, stream, self._opening[path]))
        self.opened += len(frames)
        self._waiting.clear()
        self._transport.write(b"".join(frames))


def _headers(path: str, metadata: Sequence[tuple[str, str]]) -> bytes:
    pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    ]
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in pairs)


def _string(text: str) -> bytes:
    assert len(text) < 127  # longer ones have a longer length
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
