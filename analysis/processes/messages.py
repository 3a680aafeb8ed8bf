"""Messages between the server and a child process: a JSON object and any number of byte strings.

Invariant: the receiver bounds what it takes before it takes it, since a child that decodes
untrusted bytes may send anything.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

#: Most bytes of the JSON of a message.
_MAX_HEAD_BYTES: Final = 65_536
_LENGTH: Final = struct.Struct("!I")


class MessageError(Exception):
    """What came is no message within bounds."""


def send(connection: socket.socket, fields: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send a message; raises what sockets raise."""
    head = json.dumps({**fields, "blobs": [len(blob) for blob in blobs]}).encode()
    connection.sendall(_LENGTH.pack(len(head)) + head)
    for blob in blobs:
        connection.sendall(blob)


def receive(
    connection: socket.socket, *, max_blob_bytes: int
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the next message.

    Raises:
        EOFError: The other side is gone.
        MessageError: It is none, or longer than allowed.
        OSError: What sockets raise.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    if length > _MAX_HEAD_BYTES:
        msg = "the head of a message is too long"
        raise MessageError(msg)
    try:
        fields = json.loads(_read(connection, length))
        sizes = [int(size) for size in fields.pop("blobs")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        msg = "a message is malformed"
        raise MessageError(msg) from error
    if any(size < 0 for size in sizes) or sum(sizes) > max_blob_bytes:
        msg = "the byte strings of a message are too long"
        raise MessageError(msg)
    return fields, [_read(connection, size) for size in sizes]


def _read(connection: socket.socket, size: int) -> bytes:
    content = bytearray(size)
    view = memoryview(content)
    position = 0
    while position < size:
        count = connection.recv_into(view[position:])
        if count == 0:
            raise EOFError
        position += count
    return bytes(content)
