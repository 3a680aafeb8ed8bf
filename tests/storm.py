"""A storm of kills: the server dies again and again under load, and must lose nothing.

Run by `make storm` (500 SIGKILLs, then 40 SIGTERMs) and, shorter, by tests/e2e/test_storm.py.
Callers submit all the while; a receiver takes what is called back, and is slow about some of
it. The server is not waited for: it may die while it still loads its models. In the end the books
must balance: every accepted query was delivered, duplicates are no more than what was under way at
the kills, and whatever came twice came with the same webhook-id and the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from dispatcher import DispatcherSettings
from picback.v1 import image_pb2, image_service_pb2, image_service_pb2_grpc, query_pb2
from storage import driver
from tests.receiver import Answer, Receiver
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.receiver import Received

#: Delivery threads of the server: what can be under way when it dies.
IN_FLIGHT = DispatcherSettings().delivery_threads
#: Threads that submit, and how many queries may wait: more would only make the end longer.
CALLERS = 4
MOST_WAITING = 100

_PATIENCE = 30.0  # seconds


@dataclass(slots=True)
class Books:
    """What was accepted, and what came in."""

    accepted: set[str] = field(default_factory=set)
    deliveries: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, set[bytes]] = field(default_factory=dict)
    #: Seconds from each start to its first callback.
    restarts: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def lost(self) -> set[str]:
        """Accepted, and never called back with success."""
        with self.lock:
            return self.accepted - set(self.deliveries)

    @property
    def duplicates(self) -> int:
        """Callbacks beyond the first of each query."""
        return sum(count - 1 for count in self.deliveries.values())


class Storm:
    """Callers, a receiver and a server that is killed *times* times by *signal_*."""

    def __init__(self, folder: Path, *, times: int, signal_: signal.Signals, seed: int) -> None:
        self.books = Books()
        self._folder = folder
        self._times = times
        self._signal = signal_
        self._chance = random.Random(seed)
        self._address = f"127.0.0.1:{_free_port(self._chance)}"
        self._process: subprocess.Popen[str] | None = None
        self._key = ""
        self._called_back = threading.Event()
        self._over = threading.Event()

    def run(self) -> Books:
        """Let it rage, wait until all is delivered, and return the books."""
        with Receiver(self._receive) as receiver:
            self._start(receiver)
            self._greet()
            callers = [
                threading.Thread(target=self._submit, args=(receiver.url, caller))
                for caller in range(CALLERS)
            ]
            for caller in callers:
                caller.start()
            for _ in range(self._times):
                self._wait_for_callbacks(self._chance.randint(1, 40))
                self._kill()
                self._called_back.clear()
                started = time.monotonic()
                self._start(receiver)
                self._called_back.wait(_PATIENCE)
                self.books.restarts.append(time.monotonic() - started)
            self._over.set()
            for caller in callers:
                caller.join()
            self._wait_until_delivered()
            self._kill(signal.SIGTERM)
        return self.books

    def _receive(self, request: Received) -> Answer:
        self._called_back.set()
        query_id = request.headers["webhook-id"]
        with self.books.lock:
            self.books.bodies.setdefault(query_id, set()).add(request.body)
        if self._chance.random() < 0.03:
            self._over.wait(0.2)
        with self.books.lock:
            self.books.deliveries[query_id] += 1
        return Answer(204)

    def _start(self, receiver: Receiver) -> None:
        command = [sys.executable, "-m", "server", "serve", "--listen", self._address]
        self._process = subprocess.Popen(
            [
                *command,
                *("--tagger", "none", "--log-level", "error"),
                *("--data", str(self._folder), "--allow-callback", receiver.address),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def _greet(self) -> None:
        """Wait until the new server is ready, take its key, and store an image."""
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stdout.readline()
        self._key = json.loads((self._folder / "first-key.json").read_text())["key"]
        with self._channel() as channel:
            image_service_pb2_grpc.ImageServiceStub(channel).UploadImage(
                image_service_pb2.UploadImageRequest(
                    content=picture(1, size=(64, 64)), tags=[image_pb2.Tag(name="dog")]
                ),
                metadata=(("x-api-key", self._key),),
            )

    def _kill(self, signal_: signal.Signals | None = None) -> None:
        process = self._process
        assert process is not None
        process.send_signal(signal_ or self._signal)
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()

    def _wait_for_callbacks(self, more: int) -> None:
        wanted = sum(self.books.deliveries.values()) + more
        deadline = time.monotonic() + _PATIENCE
        while sum(self.books.deliveries.values()) < wanted and time.monotonic() < deadline:
            self._over.wait(0.01)

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(
            self._address,
            options=[
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 100),
            ],
        )

    def _submit(self, url: str, caller: int) -> None:
        """Submit one query after the other, each as often as it takes to be accepted."""
        number = 0
        with self._channel() as channel:
            stub = image_service_pb2_grpc.ImageServiceStub(channel)
            while not self._over.is_set():
                if len(self.books.lost) > MOST_WAITING:
                    self._over.wait(0.01)
                    continue
                try:
                    query = stub.SubmitQuery(
                        image_service_pb2.SubmitQueryRequest(
                            text="the dogs", callback_url=url, request_id=f"{caller}-{number}"
                        ),
                        metadata=(("x-api-key", self._key),),
                        timeout=5,
                    ).query
                except grpc.RpcError:
                    self._over.wait(0.01)
                    continue
                with self.books.lock:
                    self.books.accepted.add(query.id)
                number += 1

    def _wait_until_delivered(self) -> None:
        with self._channel() as channel:
            stub = image_service_pb2_grpc.ImageServiceStub(channel)
            for query_id in self.books.accepted:
                stream = stub.WatchQuery(
                    image_service_pb2.WatchQueryRequest(query_id=query_id),
                    metadata=(("x-api-key", self._key),),
                    timeout=60,
                    wait_for_ready=True,
                )
                last = [response.query for response in stream][-1]
                assert query_pb2.QUERY_STATE_DELIVERED == last.state, last


def _free_port(chance: random.Random) -> int:
    """Return a port below those that the system gives out, so that nobody takes it meanwhile."""
    while True:
        port = chance.randint(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def integrity(folder: Path) -> str:
    """Return what SQLite says of the database: "ok"."""
    connection = driver.connect(folder / "picback.db")
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchall()[0][0])
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both storms and print their books; 0 when they balance."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500, help="SIGKILLs")
    parser.add_argument("--terms", type=int, default=40, help="SIGTERMs")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    balanced = True
    for signal_, times in ((signal.SIGKILL, options.kills), (signal.SIGTERM, options.terms)):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            books = Storm(data, times=times, signal_=signal_, seed=options.seed).run()
            sound = integrity(data)
        most = IN_FLIGHT * times if signal_ is signal.SIGKILL else 0
        different = sum(len(bodies) > 1 for bodies in books.bodies.values())
        restarts = sorted(books.restarts) or [0.0]
        print(  # noqa: T201 - what it is for
            f"{times} x {signal_.name}: {len(books.accepted)} accepted, {len(books.lost)} lost,"
            f" {books.duplicates} duplicates (at most {most}), {different} with other bytes,"
            f" integrity {sound}, start to first callback {restarts[len(restarts) // 2]:.2f} s (median)"
        )
        balanced &= not books.lost and books.duplicates <= most and not different and sound == "ok"
    return 0 if balanced else 1


if __name__ == "__main__":
    sys.exit(main())
