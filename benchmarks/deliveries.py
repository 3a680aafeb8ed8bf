"""Row `deliveries`: working off a backlog, against posting ready bytes.

The backlog is made by a receiver that takes the first few callbacks and does not answer: what is
submitted or redelivered meanwhile piles up, accepted and due. When it begins to answer, the clock
runs until it has answered them all. Redelivered queries have their match: what is measured is the
delivery alone, from the lease to the record of what came of it. First deliveries, which are matched
as well, stand beside them; lemmas and matching have rows of their own. The baseline posts bytes of
the same length to the same receiver, by as many threads as picback has: one `httpx.Client` each, so
that none waits for another's pool.

picback has 64 threads for deliveries and calls one destination at most 8 times at once. The table's
row therefore has four destinations.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks import pictures
from benchmarks.harness import Figure, Findings, Growth, Target, median_of, paired, ratios
from benchmarks.load import calls_per_second
from benchmarks.receiver import receiving
from benchmarks.service import serving
from benchmarks.submit import IN_FLIGHT, Submitter
from dispatcher import DispatcherSettings
from picback.v1 import image_service_pb2, query_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import grpc

    from benchmarks.harness import Setup
    from benchmarks.receiver import Receiver
    from benchmarks.service import Service

#: As many as picback has.
THREADS: Final = DispatcherSettings().delivery_threads
#: The image that a text finds, by the tag that stands in it. 200 KB is the row's.
SIZES: Final = {"thumbnail": 20_000, "photo": 200_000, "poster": 2_000_000}
DESTINATIONS: Final = (1, 2, 4, 8)
_ROW: Final = ("photo", 4)
_UNDER_WAY: Final = image_service_pb2.ListQueriesRequest(
    state=query_pb2.QUERY_STATE_DELIVERING, page_size=1
)
#: Paired runs of each point of a plot.
_GROWTH_RUNS: Final = 2


def measure(setup: Setup) -> Findings:
    """Compare callbacks per second."""
    with (
        receiving(max(DESTINATIONS)) as receiver,
        serving(setup.scratch / "deliveries", callbacks=receiver.addresses) as service,
    ):
        for tag, size in SIZES.items():
            service.add_image(pictures.padded(size), tag)
        bench = Bench(setup, service, receiver)
        tag, many = _ROW
        bench.first("photo", 1)  # warm; and the sizes of bodies are known from here on
        bench.baseline("photo", 1)
        bench.prepare(tag, many)
        cpu_before = service.cpu_seconds()
        runs = bench.compare(tag, many, runs=setup.runs)
        cpu = (service.cpu_seconds() - cpu_before) / (setup.runs * bench.count("photo"))
        first = bench.compare(tag, many, runs=setup.runs, first=True)
        by_size = {
            SIZES[tag]: runs if (tag, many) == _ROW else bench.compare(tag, many, runs=_GROWTH_RUNS)
            for tag in SIZES
        }
        by_destination = {
            many: runs
            if ("photo", many) == _ROW
            else bench.compare("photo", many, runs=_GROWTH_RUNS)
            for many in DESTINATIONS
        }
    row = Figure(
        title="deliveries of a 200 KB image, 4 destinations",
        baseline=f"a bare loop of httpx.Client posts, {_threads(many)} threads",
        unit="x",
        runs=ratios(runs, "product", "baseline"),
        target=Target(must=0.7, goal=0.95),
        details={
            "callbacks/s": median_of(runs, "product"),
            "bare posts/s": median_of(runs, "baseline"),
            "server CPU µs per callback, redelivering included": 1e6 * cpu,
        },
    )
    single = by_destination[1]
    return Findings(
        figures=[
            row,
            Figure(
                title="first deliveries, matching included, 4 destinations",
                baseline=f"a bare loop of httpx.Client posts, {_threads(many)} threads",
                unit="x",
                runs=ratios(first, "product", "baseline"),
                details={"callbacks/s": median_of(first, "product")},
            ),
            Figure(
                title="deliveries of a 200 KB image, 1 destination",
                baseline=f"a bare loop of httpx.Client posts, {_threads(1)} threads",
                unit="x",
                runs=ratios(single, "product", "baseline"),
                details={
                    "callbacks/s": median_of(single, "product"),
                    "bare posts/s": median_of(single, "baseline"),
                },
            ),
        ],
        growths=[
            Growth(
                name="deliveries by image size",
                x="size of the image (bytes)",
                y="callbacks per second",
                lines={
                    label: [(size, median_of(found, name)) for size, found in by_size.items()]
                    for label, name in _LABELS.items()
                },
            ),
            Growth(
                name="deliveries by destinations",
                x="destinations with a backlog",
                y="callbacks per second",
                lines={
                    label: [
                        (many, median_of(found, name)) for many, found in by_destination.items()
                    ]
                    for label, name in _LABELS.items()
                },
            ),
        ],
    )


_LABELS: Final = {"picback": "product", "bare httpx.Client": "baseline"}


def _threads(destinations: int) -> int:
    """Return how many picback calls back with."""
    return min(THREADS, 8 * destinations)


class Bench:
    """Backlogs for one service, and how fast they are worked off.

    Attributes:
        accepted: Calls per second by which the last backlog was made.
    """

    def __init__(self, setup: Setup, service: Service, receiver: Receiver) -> None:
        self._setup = setup
        self._service = service
        self._receiver = receiver
        self._body_bytes: dict[str, int] = {}
        self._ids: dict[tuple[str, int], list[str]] = {}
        self.accepted = 0.0
        # Made once: each loads the certificate authorities.
        self._clients = [httpx.Client(trust_env=False) for _ in range(THREADS)]

    def count(self, tag: str) -> int:
        """Return how many callbacks a run has."""
        return self._setup.size(96 if tag == "poster" else 480, 40)

    def compare(
        self, tag: str, destinations: int, *, runs: int, first: bool = False
    ) -> list[dict[str, float]]:
        """Return callbacks per second of picback and of the baseline, in paired runs."""
        self.prepare(tag, destinations)
        product = self.first if first else self.again
        return paired(
            min(runs, self._setup.runs),
            {
                "product": lambda: product(tag, destinations),
                "baseline": lambda: self.baseline(tag, destinations),
            },
        )

    def prepare(self, tag: str, destinations: int) -> None:
        """Have queries that were delivered once."""
        if (tag, destinations) not in self._ids:
            self.first(tag, destinations)

    def first(self, tag: str, destinations: int) -> float:
        """Return callbacks per second of picback's, of queries that are new."""
        start = _Remembering(
            Submitter(self._service, *self._receiver.urls[:destinations], text=f"a {tag}")
        )
        rate = self._work_off(tag, start)
        self._ids[tag, destinations] = start.ids
        return rate

    def again(self, tag: str, destinations: int) -> float:
        """Return callbacks per second of picback's, of queries that were delivered before."""
        while self._service.stub.ListQueries(_UNDER_WAY, metadata=self._service.metadata).queries:
            time.sleep(0.01)  # until what came of the last ones is recorded
        ids = iter(self._ids[tag, destinations])
        return self._work_off(
            tag,
            lambda: self._service.stub.RedeliverQuery.future(
                image_service_pb2.RedeliverQueryRequest(query_id=next(ids)),
                metadata=self._service.metadata,
            ),
        )

    def _work_off(self, tag: str, start: Callable[[], grpc.Future[Any]]) -> float:
        """Make a backlog by calls that *start* begins; return callbacks per second."""
        count, receiver = self.count(tag), self._receiver
        receiver.hold()
        self.accepted = calls_per_second(start, calls=count, in_flight=IN_FLIGHT)
        receiver.expect(count)
        begun = time.monotonic_ns()
        received = receiver.wait()
        self._body_bytes[tag] = received.body_bytes // count
        return count / (received.complete - begun) * 1e9

    def baseline(self, tag: str, destinations: int) -> float:
        """Return bare posts per second, by the threads that picback uses."""
        count, receiver = self.count(tag), self._receiver
        threads = _threads(destinations)
        body = bytes(self._body_bytes[tag])
        receiver.expect(count)
        begun = time.monotonic_ns()
        posts = [
            threading.Thread(
                target=_post,
                args=(client, receiver.urls[number % destinations], body),
                kwargs={"count": count // threads + (number < count % threads)},
            )
            for number, client in enumerate(self._clients[:threads])
        ]
        for thread in posts:
            thread.start()
        received = receiver.wait()
        for thread in posts:
            thread.join()
        return count / (received.complete - begun) * 1e9


class _Remembering:
    """Begins calls, and remembers the ids of the queries that they answer with."""

    def __init__(self, start: Submitter) -> None:
        self._start = start
        self.ids: list[str] = []

    def __call__(self) -> grpc.Future[Any]:
        call = self._start()
        call.add_done_callback(lambda done: self.ids.append(done.result().query.id))
        return call


def _post(client: httpx.Client, url: str, body: bytes, *, count: int) -> None:
    for _ in range(count):
        client.post(url, content=body, headers={"content-type": "application/json"})
