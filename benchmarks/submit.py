"""Row `submit`: durable acceptance of queries, against the cheapest call there is.

Both are made by this process on one connection to one server, 64 under way at once. Every query
has a request_id, as callers are advised to send. What is submitted is not delivered meanwhile: the
receiver takes the first few and does not answer, so the one destination is as busy as it may be,
and the rest piles up. (Deliveries have rows of their own.)
"""

from __future__ import annotations

import itertools
import uuid
from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health_pb2

from benchmarks.harness import Figure, Findings, Target, median_of, paired, ratios
from benchmarks.load import calls_per_second
from benchmarks.receiver import receiving
from benchmarks.service import serving
from picback.v1 import image_service_pb2

if TYPE_CHECKING:
    from typing import Any

    import grpc

    from benchmarks.harness import Setup
    from benchmarks.service import Service

IN_FLIGHT: Final = 64


def measure(setup: Setup) -> Findings:
    """Compare calls per second of SubmitQuery and of health Check."""
    calls = setup.size(2_000, 500)
    with (
        receiving() as receiver,
        serving(setup.scratch / "submit", callbacks=receiver.addresses) as service,
    ):
        receiver.hold()
        starters = {
            "health": _checking(service),
            "submit": Submitter(service, receiver.urls[0], with_request_id=True),
            "submit, no request_id": Submitter(service, receiver.urls[0], with_request_id=False),
        }
        cpu: dict[str, list[float]] = {name: [] for name in starters}

        def run(name: str) -> float:
            before = service.cpu_seconds()
            rate = calls_per_second(starters[name], calls=calls, in_flight=IN_FLIGHT)
            cpu[name].append((service.cpu_seconds() - before) / calls)
            return rate

        for name in starters:
            run(name)  # warm
            cpu[name].clear()
        runs = paired(setup.runs, {name: lambda name=name: run(name) for name in starters})  # type: ignore[misc] # mypy reads no defaults of lambdas
        receiver.expect(1)
    used = [dict(zip(cpu, values, strict=True)) for values in zip(*cpu.values(), strict=True)]
    return Findings(
        figures=[
            Figure(
                title="SubmitQuery, durable, 64 in flight",
                baseline="health Check on the same server",
                unit="x",
                runs=ratios(runs, "submit", "health"),
                target=Target(must=0.5, goal=0.8),
                details={
                    "SubmitQuery calls/s": median_of(runs, "submit"),
                    "health Check calls/s": median_of(runs, "health"),
                    "server CPU µs per SubmitQuery": 1e6 * median_of(used, "submit"),
                    "server CPU µs per Check": 1e6 * median_of(used, "health"),
                },
            ),
            Figure(
                title="SubmitQuery without a request_id",
                baseline="health Check on the same server",
                unit="x",
                runs=ratios(runs, "submit, no request_id", "health"),
                details={"SubmitQuery calls/s": median_of(runs, "submit, no request_id")},
            ),
        ]
    )


class Submitter:
    """Submits queries: *text*, and a number that makes each another text; the *urls* in turn."""

    def __init__(
        self, service: Service, *urls: str, text: str = "a dog", with_request_id: bool = True
    ) -> None:
        self._service = service
        self._urls = itertools.cycle(urls)
        self._text = text
        self._with_request_id = with_request_id
        self._numbers = itertools.count()

    def __call__(self) -> grpc.Future[Any]:
        """Begin a SubmitQuery."""
        request = image_service_pb2.SubmitQueryRequest(
            text=f"{self._text} {next(self._numbers)}",
            callback_url=next(self._urls),
            request_id=str(uuid.uuid4()) if self._with_request_id else "",
        )
        return self._service.stub.SubmitQuery.future(request, metadata=self._service.metadata)


def _checking(service: Service) -> Any:
    request = health_pb2.HealthCheckRequest()
    return lambda: service.health.Check.future(request)
