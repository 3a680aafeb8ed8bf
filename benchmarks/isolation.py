"""What one destination that hangs, with 10,000 queries behind it, costs 20 that answer.

``python -m benchmarks.isolation`` (under three minutes). Runs come in pairs, one with the hanging
destination and one without, in turn first and second. Each run has a new server and begins in the
worst moment: nothing is known of any destination yet, and everything is due at once. Healthy
receivers answer after 10 ms, so that a thread that is held is a thread that is missed.

* throughput: a backlog for the healthy ones, worked off as fast as it goes
* p99: queries submitted at fixed times, however long earlier ones take; from when each was to be
  submitted until its POST arrived
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import grpc

from benchmarks.harness import paired, percentile
from picback.v1 import image_service_pb2, image_service_pb2_grpc
from storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HEALTHY: Final = 20
#: Queries behind the one that hangs.
HANGING: Final = 10_000
#: Queries of the healthy ones' backlog.
BACKLOG: Final = 1_600
#: Offered load, per second and for how many seconds.
RATE: Final = 80
LOAD_SECONDS: Final = 8
#: What a run with the hanging destination must reach, as a ratio, and what is the goal.
THROUGHPUT: Final = (0.95, 0.99)
P99: Final = (1.5, 1.2)

_ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID: Final = re.compile(rb"\r\nwebhook-id: (\S+)\r\n", re.IGNORECASE)
_TEXT: Final = "a dog"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's figures."""

    #: Healthy callbacks per second.
    throughput: float
    #: Seconds.
    p99: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON; 0 when the medians reach what they must."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--answer-after", type=float, default=0.01, help="seconds")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/isolation.json"))
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.receive:
        asyncio.run(_receive(options.answer_after))
        return 0
    runs = paired(
        options.pairs,
        {
            "with": lambda: _run(hanging=HANGING, answer_after=options.answer_after),
            "without": lambda: _run(hanging=0, answer_after=options.answer_after),
        },
    )
    throughput = [run["with"].throughput / run["without"].throughput for run in runs]
    p99 = [run["with"].p99 / run["without"].p99 for run in runs]
    for name in ("without", "with"):
        rate = median(run[name].throughput for run in runs)
        milliseconds = 1000 * median(run[name].p99 for run in runs)
        print(f"{name:<8}: {rate:.0f}/s, p99 {milliseconds:.1f} ms (medians)")
    print(f"throughput {_summary(throughput)}; at least {THROUGHPUT[0]}, goal {THROUGHPUT[1]}")
    print(f"p99        {_summary(p99)}; at most {P99[0]}, goal {P99[1]}")
    facts = {
        "throughput_ratios": throughput,
        "p99_ratios": p99,
        "runs": [
            {name: {"throughput": each.throughput, "p99": each.p99} for name, each in run.items()}
            for run in runs
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=1) + "\n")
    reached = median(throughput) >= THROUGHPUT[0] and median(p99) <= P99[0]
    return 0 if reached else 1


def _run(*, hanging: int, answer_after: float) -> Run:
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="picback-isolation-"))
        )
        receivers = stack.enter_context(_receiving(answer_after))
        service = stack.enter_context(_serving(scratch, receivers.addresses))
        _submit(service, receivers.healthy[0]).result()  # warm
        receivers.report(1)
        backlog = {receivers.hanging: hanging}
        backlog |= dict.fromkeys(receivers.healthy, BACKLOG // HEALTHY)
        _pile_up(scratch, backlog)
        _submit(service, receivers.healthy[0]).result()  # wakes it
        arrivals = sorted(receivers.report(BACKLOG + 1).values())
        # The first round of turns belongs to what was asleep.
        begun = BACKLOG // 10
        throughput = (len(arrivals) - begun) / (arrivals[-1] - arrivals[begun])
        return Run(throughput=throughput, p99=_p99(service, receivers))


def _p99(service: _Service, receivers: _Receivers) -> float:
    """Offer a constant load; return how late the last percent was called back (seconds)."""
    calls = []
    begin = time.monotonic()
    for number in range(RATE * LOAD_SECONDS):
        due = begin + number / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        calls.append((due, _submit(service, receivers.healthy[number % HEALTHY])))
    submitted = {call.result().query.id: due for due, call in calls}
    arrivals = receivers.report(len(submitted))
    return percentile([arrivals[each] - due for each, due in submitted.items()], 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Service:
    stub: image_service_pb2_grpc.ImageServiceStub
    metadata: tuple[tuple[str, str]]


@contextmanager
def _serving(folder: Path, callbacks: Sequence[str]) -> Iterator[_Service]:
    command = [sys.executable, "-m", "server", "serve", "--tagger", "none", "--log-level", "error"]
    command += ["--listen", "127.0.0.1:0", "--data", str(folder)]
    for each in callbacks:
        command += ["--allow-callback", each]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            address = process.stdout.readline().split()[-1]
            key = json.loads((folder / "first-key.json").read_text())["key"]
            with grpc.insecure_channel(address) as channel:
                yield _Service(
                    stub=image_service_pb2_grpc.ImageServiceStub(channel),
                    metadata=(("x-api-key", key),),
                )
        finally:
            process.kill()  # a stop in earnest would wait for what hangs


def _submit(service: _Service, url: str) -> Any:
    return service.stub.SubmitQuery.future(
        image_service_pb2.SubmitQueryRequest(text=_TEXT, callback_url=url),
        metadata=service.metadata,
        timeout=60,
    )


def _pile_up(folder: Path, queries: Mapping[str, int]) -> None:
    """Let queries be due at once: url -> how many. As SubmitQuery leaves them, but in one go."""
    database = Database.beside(folder)
    now = time.time_ns() // 1_000_000
    try:
        (key,) = database.read("SELECT id FROM api_key")[0]
        rows = [
            (f"qry_{url.rpartition(':')[2].strip('/')}-{number}", key, url, url.strip("/"), now)
            for url, count in queries.items()
            for number in range(count)
        ]
        database.write(partial(_insert, rows=rows))
    finally:
        database.close()


def _insert(connection: Any, rows: Sequence[tuple[str, str, str, str, int]]) -> None:
    connection.executemany(
        "INSERT INTO destination (name) VALUES (?) ON CONFLICT DO NOTHING",
        list({(name,) for *_, name, _ in rows}),
    )
    connection.executemany(
        "INSERT INTO query (id, key_id, text, callback_url, destination_id, state, due_at,"
        " cycle_at, created_at) VALUES (?1, ?2, ?6, ?3,"
        " (SELECT id FROM destination WHERE name = ?4), 'QUEUED', ?5, ?5, ?5)",
        [(*row, _TEXT) for row in rows],
    )


class _Receivers:
    """The receivers' process, seen from the one that measures."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.addresses = [f"127.0.0.1:{port}" for port in self._hear()]
        self.hanging, *self.healthy = (f"http://{address}/" for address in self.addresses)

    def report(self, requests: int) -> dict[str, float]:
        """Wait until so many have come to the healthy ones since the last report.

        Returns:
            When each came: webhook-id -> seconds, monotonic.
        """
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(f"{requests}\n")
        self._process.stdin.flush()
        found: dict[str, float] = self._hear()
        return found

    def _hear(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return json.loads(self._process.stdout.readline())


@contextmanager
def _receiving(answer_after: float) -> Iterator[_Receivers]:
    command = [sys.executable, "-m", "benchmarks.isolation", "--receive"]
    with subprocess.Popen(
        [*command, "--answer-after", str(answer_after)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield _Receivers(process)
        finally:
            process.kill()


class _Arrivals:
    """What came to the healthy ones, and how much of it is waited for."""

    def __init__(self) -> None:
        self._arrivals: dict[str, float] = {}
        self._wanted = 0

    def add(self, query_id: str) -> None:
        self._arrivals.setdefault(query_id, time.monotonic())
        self._tell()

    def wait_for(self, requests: int) -> None:
        self._wanted = requests
        self._tell()

    def _tell(self) -> None:
        if self._wanted and len(self._arrivals) >= self._wanted:
            print(json.dumps(self._arrivals), flush=True)
            self._arrivals, self._wanted = {}, 0


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
            self._received = b""
            self._arrivals.add(query_id[1].decode())
            asyncio.get_running_loop().call_later(
                self._answer_after, self._transport.write, _ANSWER
            )


async def _receive(answer_after: float) -> None:
    loop, arrivals = asyncio.get_running_loop(), _Arrivals()
    factories = [partial(_Connection, None, answer_after)]
    factories += [partial(_Connection, arrivals, answer_after)] * HEALTHY
    servers = [
        await loop.create_server(factory, "127.0.0.1", 0, backlog=256) for factory in factories
    ]
    print(json.dumps([each.sockets[0].getsockname()[1] for each in servers]), flush=True)
    ended = asyncio.Event()

    def read() -> None:
        line = sys.stdin.readline()
        if line:
            arrivals.wait_for(int(line))
        else:
            ended.set()

    loop.add_reader(sys.stdin.fileno(), read)
    await ended.wait()


def _summary(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f} (median; {min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    sys.exit(main())
