"""How long a killed server takes, from its start until it calls back again, with a full queue.

``python -m benchmarks.restart`` (a minute). A data folder gets a million queued queries; its server
is started, calls back, and is killed in the middle of that, again and again. What was under way at
a kill is what the next start redelivers; it has its match, and waits for no models. A first attempt
does. The parts are measured apart, each by itself: they overlap in a real start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from analysis.lemmas import Lemmatizer
from analysis.taggers.local import LocalTagger
from dispatcher import new_secret
from storage.api_keys import SCOPES, ApiKeys
from storage.breakers import Breakers
from storage.database import Database
from storage.images import Images, NewImage
from storage.queries import Queries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

QUERIES: Final = 1_000_000
DESTINATIONS: Final = 20
#: Seconds that a receiver takes: what is under way at a kill is waiting for its answer.
_ANSWER_AFTER: Final = 0.05
_ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_ID: Final = re.compile(rb"\r\nwebhook-id: (\S+)\r\n", re.IGNORECASE)
_PATIENCE: Final = 60.0


class Receiver:
    """All destinations: notes when a query is first called back about, and answers soon."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._first_seen: dict[str, float] = {}
        self._loop = asyncio.new_event_loop()
        self.ports = [
            self._loop.run_until_complete(
                self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
            )
            .sockets[0]
            .getsockname()[1]
            for _ in range(DESTINATIONS)
        ]
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def forget(self) -> None:
        """Note from here on."""
        with self._changed:
            self._first_seen = {}

    def note(self, query_id: str) -> None:
        """There is a request."""
        with self._changed:
            self._first_seen.setdefault(query_id, time.monotonic())
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[str], bool]) -> float:
        """Return when the first query came for which *wanted* holds (seconds, monotonic)."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: [at for each, at in self._first_seen.items() if wanted(each)], _PATIENCE
            )
        if not found:
            msg = "nothing was called back; does `picback serve` start?"
            raise TimeoutError(msg)
        return min(found)


class _Connection(asyncio.Protocol):
    """Reads a body to its end by nothing but its silence: what is sent here is small."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        found = _ID.search(data)
        if found:
            self._receiver.note(found[1].decode())
            loop = asyncio.get_running_loop()
            loop.call_later(_ANSWER_AFTER, self._transport.write, _ANSWER)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON; 0 when a redelivery takes less than a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tagger", default="local", help="as of picback serve")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/restart.json"))
    options = parser.parse_args(arguments)
    receiver = Receiver()
    with tempfile.TemporaryDirectory(prefix="picback-restart-") as scratch:
        folder = Path(scratch)
        _fill(folder, options.queries, receiver.ports)
        _run(folder, receiver, options.tagger)  # leaves the first leases
        runs = [_run(folder, receiver, options.tagger) for _ in range(options.runs)]
        parts = _parts(folder)
    found = {name: sorted(run[name] for run in runs) for name in runs[0]}
    print(f"{options.queries:,} queries wait; seconds from the start of the process until")
    for name, values in found.items():
        print(f"  {name:<34} {_summary(values)}")
    print("Parts, each by itself, in seconds:")
    for name, seconds in parts.items():
        print(f"  {name:<34} {seconds:.3f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"queries": options.queries, "seconds_until": found, "seconds_of_parts": parts}
    options.output.write_text(json.dumps(facts, indent=1) + "\n")
    return 0 if statistics.median(found["the first redelivery"]) < 1 else 1


def _fill(folder: Path, queries: int, ports: Sequence[int]) -> None:
    database = Database.own(folder)
    try:
        key = ApiKeys(database).create(
            "bench", scopes=SCOPES, signing_secret=new_secret(), expires_at=None, now=_now()
        )
        for number in range(100):
            content = f"image {number}".encode()
            Images(database).add(
                NewImage(
                    content=content,
                    sha256=f"{number:064}",
                    media_type="image/png",
                    width=1,
                    height=1,
                ),
                tags_of_caller={"dog": 1000 * number, f"tag {number}": 500_000},
                request=None,
                tag_it=False,
                now=_now(),
            )
        names = [f"http://127.0.0.1:{port}" for port in ports]
        database.write(
            lambda connection: (
                connection.executemany(
                    "INSERT INTO destination (name) VALUES (?)", [(name,) for name in names]
                ).rowcount
            )
        )
        # As SubmitQuery leaves them, accepted one millisecond after the other.
        database.write(
            lambda connection: (
                connection.execute(
                    "WITH RECURSIVE number(n) AS ("
                    "  SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :queries)"
                    " INSERT INTO query (id, key_id, text, callback_url, destination_id, state, due_at,"
                    "   cycle_at, created_at)"
                    " SELECT printf('qry_%026d', n), :key, 'dogs in the park ' || n, name || '/', id,"
                    "   'QUEUED', :now - :queries + n, :now - :queries + n, :now - :queries + n"
                    " FROM number JOIN destination ON id = 1 + n % :destinations",
                    {
                        "queries": queries,
                        "key": key.id,
                        "now": _now(),
                        "destinations": len(names),
                    },
                ).rowcount
            )
        )
    finally:
        database.close()


def _run(folder: Path, receiver: Receiver, tagger: str) -> dict[str, float]:
    """Start the server, wait for callbacks, kill it; return the seconds that each took."""
    under_way = _under_way(folder)
    receiver.forget()
    command = [sys.executable, "-m", "server", "serve", "--data", str(folder), "--tagger", tagger]
    command += ["--listen", "127.0.0.1:0", "--log-level", "error"]
    for port in receiver.ports:
        command += ["--allow-callback", f"127.0.0.1:{port}"]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            found = {}
            if under_way:
                found["the first redelivery"] = receiver.wait_for(under_way.__contains__) - started
            process.stdout.readline()
            found["all is ready"] = time.monotonic() - started
            new = receiver.wait_for(lambda query_id: query_id not in under_way)
            found["the first callback without a match"] = new - started
        finally:
            process.kill()
    return found


def _under_way(folder: Path) -> frozenset[str]:
    """Return which queries a killed server was calling back about."""
    database = Database.beside(folder)
    try:
        rows = database.read("SELECT id FROM query WHERE leased_at IS NOT NULL")
    finally:
        database.close()
    return frozenset(id_ for (id_,) in rows)


def _parts(folder: Path) -> Mapping[str, float]:
    """Do what a start does, one after the other, after a kill."""
    found = {}

    def timed(name: str, part: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = part()
        found[name] = time.monotonic() - started
        return result

    imports = [sys.executable, "-c", "import server.serve_command"]
    timed("Python and imports", lambda: subprocess.run(imports, check=True))
    database = timed("opening the database", lambda: Database.own(folder))
    try:
        queries = Queries(database)
        timed("voiding leases", lambda: queries.void_leases(max_attempts=10, now=_now()))
        timed("restoring breakers", lambda: Breakers(database).not_closed())
        timed("which queues wait", queries.waiting)
        timed("the pipeline", Lemmatizer)
        timed("the local tagger", LocalTagger)
    finally:
        database.close()
    return found


def _now() -> int:
    return time.time_ns() // 1_000_000


def _summary(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} (median; {values[0]:.2f} to {values[-1]:.2f})"


if __name__ == "__main__":
    sys.exit(main())
