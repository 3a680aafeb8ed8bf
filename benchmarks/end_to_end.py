"""Row `end-to-end`: from submitted to called back, against what the parts cost by themselves.

*Capacity* is what one core could do if nothing but the parts took time: one divided by the sum of
their processor seconds for a query. One core, because Python's lock lets one thread of a process
run Python at a time. What runs without the lock (digests, SQLite, the kernel's work for sockets and
files) can go on beside it, on what the load and the receiver leave of the other core.

The parts are named in `benchmarks.parts`; acceptance is measured here, in the server: SubmitQuery,
64 in flight, nothing delivered meanwhile.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks import pictures
from benchmarks.harness import Figure, Findings, Target, median_of, paired
from benchmarks.load import calls_per_second
from benchmarks.parts import SIZE_BYTES, TEXT, opened_parts
from benchmarks.receiver import receiving
from benchmarks.service import serving
from benchmarks.submit import IN_FLIGHT, Submitter

if TYPE_CHECKING:
    from benchmarks.harness import Setup
    from benchmarks.receiver import Receiver
    from benchmarks.service import Service

_DESTINATIONS: Final = 2


def measure(setup: Setup) -> Findings:
    """Compare queries called back per second with the parts' capacity."""
    count = setup.size(480, 80)
    with (
        receiving(_DESTINATIONS) as receiver,
        serving(setup.scratch / "end-to-end", callbacks=receiver.addresses) as service,
        opened_parts(setup.scratch / "parts") as parts,
    ):
        service.add_image(pictures.padded(SIZE_BYTES), "dog")
        start = Submitter(service, *receiver.urls, text=TEXT)

        def whole() -> dict[str, float]:
            receiver.expect(count)
            cpu, begun = service.cpu_seconds(), time.monotonic_ns()
            calls_per_second(start, calls=count, in_flight=IN_FLIGHT)
            received = receiver.wait()
            _settle_down()
            return {
                "rate": count / (received.complete - begun) * 1e9,
                "cpu": (service.cpu_seconds() - cpu) / count,
            }

        def apart() -> dict[str, float]:
            accept = _accept(service, receiver, start, count)
            return {"accept": accept, **parts.measure(receiver, count)}

        whole()  # warm
        runs = paired(setup.runs, {"whole": whole, "apart": apart})
    wholes, aparts = [run["whole"] for run in runs], [run["apart"] for run in runs]
    return Findings(
        figures=[
            Figure(
                title="end to end, queries per second, 200 KB image",
                baseline="one core's capacity by the CPU costs of the parts",
                unit="x",
                runs=[
                    run["rate"] * sum(costs.values())
                    for run, costs in zip(wholes, aparts, strict=True)
                ],
                target=Target(must=0.6, goal=0.85),
                details={
                    "queries/s": median_of(wholes, "rate"),
                    "server CPU µs per query": 1e6 * median_of(wholes, "cpu"),
                    **{f"CPU µs: {part}": 1e6 * median_of(aparts, part) for part in aparts[0]},
                },
            )
        ]
    )


def _accept(service: Service, receiver: Receiver, start: Submitter, count: int) -> float:
    """Return the server's processor seconds for each query accepted."""
    receiver.hold()
    # The first few are worked on until they wait for an answer; that is not acceptance.
    calls_per_second(start, calls=IN_FLIGHT, in_flight=IN_FLIGHT)
    _settle_down()
    before = service.cpu_seconds()
    calls_per_second(start, calls=count, in_flight=IN_FLIGHT)
    used = (service.cpu_seconds() - before) / count
    receiver.expect(count + IN_FLIGHT)
    receiver.wait()
    _settle_down()
    return used


def _settle_down() -> None:
    """Wait until what the last answers set off has been written."""
    time.sleep(0.2)
