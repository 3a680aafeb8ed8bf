"""A receiver that costs next to nothing: it counts bodies, and throws them away unread.

It runs as a process of its own (``python -m benchmarks.receiver PORTS``) and is told by lines on
its standard input what to do. Times are of the monotonic clock, which on Linux is one for all
processes, in nanoseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
#: Larger than most bodies here, so that most of one can be taken in one call.
_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What came in since it was asked for. Nanoseconds of the monotonic clock."""

    #: When the first byte of the last request came.
    first_byte: int
    #: When its last byte had come.
    complete: int
    bodies: int
    body_bytes: int


class Receiver:
    """The receiver's process, seen from the one that measures."""

    def __init__(self, process: subprocess.Popen[str], ports: list[int]) -> None:
        self._process = process
        #: HOST:PORT of each destination.
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self.urls = [f"http://{address}/callback" for address in self.addresses]

    def hold(self) -> None:
        """Answer nobody from now on: senders wait, and what is submitted piles up."""
        self._tell("hold")

    def expect(self, bodies: int) -> None:
        """Count from here on; *bodies* of them will be waited for. Held ones are answered now."""
        self._tell(f"expect {bodies}")

    def wait(self) -> Received:
        """Return as soon as all that is expected has been received and answered."""
        return Received(**self._hear())

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._hear()  # it has been done

    def _hear(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        line = self._process.stdout.readline()
        if not line:
            msg = "the receiver has died"
            raise RuntimeError(msg)
        return json.loads(line)


@contextlib.contextmanager
def receiving(destinations: int = 1) -> Iterator[Receiver]:
    """Run a receiver on so many free ports of loopback while the block runs."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(destinations)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            yield Receiver(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


class _Counter:
    """What all connections share."""

    def __init__(self) -> None:
        self.is_holding = False
        self._held: list[tuple[asyncio.WriteTransport, int, int]] = []
        self._expected = 0
        self._bodies = 0
        self._body_bytes = 0

    def obey(self, line: str) -> None:
        command, _, count = line.partition(" ")
        self.is_holding = command == "hold"
        _print({"done": command})
        if self.is_holding:
            return
        self._expected, self._bodies, self._body_bytes = int(count), 0, 0
        held, self._held = self._held, []
        for each in held:
            self.received(*each)

    def received(self, transport: asyncio.WriteTransport, length: int, first_byte: int) -> None:
        if self.is_holding:
            self._held.append((transport, length, first_byte))
            return
        complete = time.monotonic_ns()
        transport.write(_ANSWER)
        self._bodies += 1
        self._body_bytes += length
        if self._bodies == self._expected:
            _print(
                {
                    "first_byte": first_byte,
                    "complete": complete,
                    "bodies": self._bodies,
                    "body_bytes": self._body_bytes,
                }
            )


class _Connection(asyncio.BufferedProtocol):
    """Looks at heads only for how long the body is."""

    _buffer = bytearray(_BUFFER_BYTES)  # one for all: nothing stays in it

    def __init__(self, counter: _Counter) -> None:
        self._counter = counter
        self._head = b""
        self._length = 0
        self._missing = 0
        self._first_byte = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        if not self._missing:
            size = self._read_head(size)
        if self._missing:
            self._missing -= size
            if not self._missing:
                self._counter.received(self._transport, self._length, self._first_byte)

    def _read_head(self, size: int) -> int:
        """Return how many of *size* bytes belong to the body."""
        if not self._head:
            self._first_byte = time.monotonic_ns()
        self._head += self._buffer[: min(size, 65_536)]
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return 0
        found = _LENGTH.search(self._head, 0, end)
        self._length = self._missing = int(found[1]) if found else 0
        before = len(self._head) - min(size, 65_536)
        self._head = b""
        return size - (end + 4 - before)


def _print(facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def _serve(ports: int) -> None:
    loop, counter = asyncio.get_running_loop(), _Counter()
    servers = [
        await loop.create_server(lambda: _Connection(counter), "127.0.0.1", 0, backlog=256)
        for _ in range(ports)
    ]
    _print([server.sockets[0].getsockname()[1] for server in servers])
    ended = asyncio.Event()

    def read_command() -> None:
        line = sys.stdin.readline()
        if line:
            counter.obey(line.strip())
        else:
            ended.set()

    loop.add_reader(sys.stdin.fileno(), read_command)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
