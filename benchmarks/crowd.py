"""Thousands of destinations on one machine, and queries queued for them before the server starts.

The receivers' process listens on a few ports of every address of the loopback interface, so that
127.1.2.3 and 127.4.5.6 are two destinations. It runs as ``python -m benchmarks.crowd``.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from benchmarks.service import cpu_seconds_of, environment
from dispatcher import new_secret
from picback.v1 import image_service_pb2, image_service_pb2_grpc
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_TEXT: Final = "a dog"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID: Final = re.compile(rb"\r\nwebhook-id: (\S+)\r\n", re.IGNORECASE)
_GOOD: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_BROKEN: Final = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


def address(number: int) -> str:
    """Return one of many addresses of loopback."""
    return f"127.{1 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


class Crowd:
    """The receivers' process, seen from the one that measures.

    Attributes:
        answering: A port whose receivers answer 204 after a while, or 500 at once if the path
            begins with ``/broken``.
        hanging: One whose receivers accept and say nothing.
        refusing: One where nobody listens.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.answering, self.hanging, self.refusing = self._hear()

    def report(self, requests: int, *, path: str = "/") -> dict[str, float]:
        """Wait until so many requests were answered 204 since the last report.

        Returns:
            When each came: webhook-id -> seconds, monotonic.
        """
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(json.dumps([requests, path]) + "\n")
        self._process.stdin.flush()
        found: dict[str, float] = self._hear()
        return found

    def _hear(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return json.loads(self._process.stdout.readline())


@contextmanager
def receiving(*, answer_after: float) -> Iterator[Crowd]:
    """Run the receivers while the block runs. *answer_after* is in seconds."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.crowd", str(answer_after)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Crowd(process)
        finally:
            process.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server with its process, and a key's way to submit."""

    process_id: int
    stub: image_service_pb2_grpc.ImageServiceStub

    def submit(self, url: str, *, token: str) -> Any:
        """Begin to submit a query."""
        return self.stub.SubmitQuery.future(
            image_service_pb2.SubmitQueryRequest(text=_TEXT, callback_url=url),
            metadata=(("x-api-key", token),),
            timeout=60,
        )

    def cpu_seconds(self) -> float:
        """Return the processor time that the server has used so far."""
        return cpu_seconds_of(self.process_id)

    def memory_bytes(self) -> int:
        """Return the memory that the server's process has to itself or shares."""
        status = Path(f"/proc/{self.process_id}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


@contextmanager
def serving(
    folder: Path, *, callbacks: Iterable[str], module: str = "server", options: Sequence[str] = ()
) -> Iterator[Server]:
    """Run a server on *folder* while the block runs; *callbacks* are HOST:PORT that it may call."""
    command = [sys.executable, "-m", module, "serve", "--tagger", "none", "--log-level", "error"]
    command += ["--listen", "127.0.0.1:0", "--data", str(folder), *options]
    for each in callbacks:
        command += ["--allow-callback", each]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            where = process.stdout.readline().split()[-1]
            with grpc.insecure_channel(where) as channel:
                yield Server(
                    process_id=process.pid, stub=image_service_pb2_grpc.ImageServiceStub(channel)
                )
        finally:
            process.kill()  # a stop in earnest would wait for what hangs


def fill(folder: Path, queued: dict[str, Sequence[str]], *, due_in: float = 0.0) -> dict[str, str]:
    """Make a data folder; return the token of each key.

    Args:
        folder: Must not exist.
        queued: Name of a key -> callback URLs of the queries that it has queued.
        due_in: Seconds until they are due.
    """
    now = time.time_ns() // 1_000_000
    with closing(Database.own(folder)) as database:
        keys = {
            name: ApiKeys(database).create(
                name, scopes=SCOPES, signing_secret=new_secret(), expires_at=None, now=now
            )
            for name in queued
        }
        for name, urls in queued.items():
            rows = [
                (f"qry_{name}-{number}", keys[name].id, url, url.split("/", 3)[2])
                for number, url in enumerate(urls)
            ]
            times = {"now": now, "due_at": now + round(1000 * due_in)}
            database.write(partial(_insert, rows=rows, **times))
    return {name: key.token for name, key in keys.items()}


def _insert(
    connection: Any, rows: Sequence[tuple[str, str, str, str]], *, now: int, due_at: int
) -> None:
    connection.executemany(
        "INSERT INTO destination (name) VALUES ('http://' || ?) ON CONFLICT DO NOTHING",
        [(where,) for where in {where for *_, where in rows}],
    )
    connection.executemany(
        "INSERT INTO query (id, key_id, text, callback_url, destination_id, state, due_at,"
        " cycle_at, created_at) VALUES (?1, ?2, ?7, ?3,"
        " (SELECT id FROM destination WHERE name = 'http://' || ?4), 'QUEUED', ?6, ?5, ?5)",
        [(*row, now, due_at, _TEXT) for row in rows],
    )


class _Arrivals:
    """What was answered 204, and how much of it is waited for."""

    def __init__(self) -> None:
        self._arrivals: dict[str, tuple[float, str]] = {}
        self._wanted, self._path = 0, "/"

    def add(self, query_id: str, path: str) -> None:
        self._arrivals.setdefault(query_id, (time.monotonic(), path))
        self._tell()

    def wait_for(self, requests: int, path: str) -> None:
        self._wanted, self._path = requests, path
        self._tell()

    def _tell(self) -> None:
        if not self._wanted or len(self._arrivals) < self._wanted:
            return
        found = {id_: at for id_, (at, path) in self._arrivals.items() if path == self._path}
        if len(found) >= self._wanted:
            print(json.dumps(found), flush=True)
            self._wanted = 0
            for id_ in found:
                del self._arrivals[id_]


class _Connection(asyncio.Protocol):
    """Answers small requests after a while, or with no *arrivals* never."""

    def __init__(self, arrivals: _Arrivals | None, answer_after: float) -> None:
        self._arrivals = arrivals
        self._answer_after = answer_after
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if self._arrivals is None:
            return
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        length, query_id = _LENGTH.search(head), _ID.search(head + b"\r\n")
        if blank and length and query_id and len(body) >= int(length[1]):
            path = head.split(b" ", 2)[1].decode()
            self._received = b""
            if path.startswith("/broken"):
                self._transport.write(_BROKEN)
                return
            self._arrivals.add(query_id[1].decode(), path)
            asyncio.get_running_loop().call_later(self._answer_after, self._transport.write, _GOOD)


def _socket() -> socket.socket:
    """Return a socket bound to a free port of all addresses of loopback, and of no other."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    bound.bind(("0.0.0.0", 0))  # noqa: S104 - of loopback's interface only
    return bound


async def _receive(answer_after: float) -> None:
    loop, arrivals = asyncio.get_running_loop(), _Arrivals()
    sockets = [_socket() for _ in range(3)]
    servers = [
        await loop.create_server(factory, sock=bound, backlog=1024)
        for factory, bound in zip(
            (
                lambda: _Connection(arrivals, answer_after),
                lambda: _Connection(None, answer_after),
            ),
            sockets,
            strict=False,  # the third refuses: it is bound, and does not listen
        )
    ]
    print(json.dumps([bound.getsockname()[1] for bound in sockets]), flush=True)
    ended = asyncio.Event()

    def read() -> None:
        line = sys.stdin.readline()
        if line:
            arrivals.wait_for(*json.loads(line))
        else:
            ended.set()

    loop.add_reader(sys.stdin.fileno(), read)
    await ended.wait()
    del servers


if __name__ == "__main__":
    asyncio.run(_receive(float(sys.argv[1])))
