"""Row `latency`: one query at a time, with pauses, as when nothing else goes on.

Two times, both seen from outside and on the clock that all processes share: from the call of
SubmitQuery until the receiver has the whole body; and from its answer, which comes right after the
commit, until the receiver sees the POST's first byte. The latter can be negative: the answer and
the callback run side by side from the commit on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks import pictures
from benchmarks.harness import Figure, Findings, Target, percentile
from benchmarks.parts import SIZE_BYTES, TEXT
from benchmarks.receiver import receiving
from benchmarks.service import serving
from benchmarks.submit import Submitter

if TYPE_CHECKING:
    from benchmarks.harness import Setup
    from benchmarks.receiver import Receiver


def measure(setup: Setup) -> Findings:
    """Measure milliseconds."""
    count = setup.size(80, 20)
    with (
        receiving() as receiver,
        serving(setup.scratch / "latency", callbacks=receiver.addresses) as service,
    ):
        service.add_image(pictures.padded(SIZE_BYTES), "dog")
        start = Submitter(service, receiver.urls[0], text=TEXT)
        runs = [_one_by_one(start, receiver, count) for _ in range(setup.runs + 1)][1:]
    whole = [[each for each, _ in run] for run in runs]
    after_commit = [[each for _, each in run] for run in runs]
    return Findings(
        figures=[
            Figure(
                title="submit to body received, idle, 200 KB image, p50",
                unit="ms",
                runs=[percentile(run, 50) for run in whole],
                target=Target(must=15, goal=6, at_most=True),
            ),
            Figure(
                title="submit to body received, idle, 200 KB image, p99",
                unit="ms",
                runs=[percentile(run, 99) for run in whole],
            ),
            Figure(
                title="commit to first byte, idle, p50",
                unit="ms",
                runs=[percentile(run, 50) for run in after_commit],
            ),
            Figure(
                title="commit to first byte, idle, p99",
                unit="ms",
                runs=[percentile(run, 99) for run in after_commit],
            ),
        ]
    )


def _one_by_one(start: Submitter, receiver: Receiver, count: int) -> list[tuple[float, float]]:
    found = []
    for _ in range(count):
        receiver.expect(1)
        time.sleep(0.02)  # what the one before set off has ended
        begun = time.monotonic_ns()
        start().result()
        answered = time.monotonic_ns()
        received = receiver.wait()
        found.append(((received.complete - begun) / 1e6, (received.first_byte - answered) / 1e6))
    return found
