"""HTTP/2 by hand, for clients that do what no gRPC library would."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


def calls_that_take_no_answer(
    port: int, paths: Sequence[str], *, metadata: Sequence[tuple[str, str]] = ()
) -> socket.socket:
    """Call each of *paths* with an empty message, and leave no room for a byte of an answer."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0))
        + b"".join(
            _frame(_HEADERS, _END_HEADERS, stream, _headers(path, metadata))
            + _frame(_DATA, _END_STREAM, stream, bytes(5))
            for stream, path in zip(range(1, 2 * len(paths), 2), paths, strict=True)
        )
    )
    return connection


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
