"""Row `memory`: the server's peak while a thousand callbacks of large images wait or are under way.

As many receivers as the server has threads take a body each and do not answer for a while; behind
them a thousand queries wait. Then they answer, and all is worked off. What counts is the highest
resident memory beyond that of the server at rest, by the kernel's own account (VmHWM, proc(5)).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import pictures
from benchmarks.harness import Figure, Findings, Target
from benchmarks.load import calls_per_second
from benchmarks.receiver import receiving
from benchmarks.service import serving
from benchmarks.submit import IN_FLIGHT, Submitter
from dispatcher import DispatcherSettings

if TYPE_CHECKING:
    from benchmarks.harness import Setup

#: Bytes of the image, and how many queries find it.
SIZES: Final = {"photo": (5_000_000, 1_000), "largest": (19_999_000, 100)}
_MB: Final = 1_000_000
#: Of what may be held at once (`DispatcherSettings.delivery_bytes`): the image itself is read
#: before it is in base64. docs/configuration.md names the same factor.
_FACTOR: Final = 2


def measure(setup: Setup) -> Findings:
    """Measure each size once, on a server of its own: a peak is not to be averaged."""
    budget = DispatcherSettings().delivery_bytes / _MB
    return Findings(
        figures=[
            Figure(
                title=f"memory beyond rest, {count:,} callbacks of {size / _MB:.0f} MB images",
                unit="MB",
                runs=[_growth(setup, tag)],
                target=Target(must=_FACTOR * budget, goal=budget, at_most=True),
            )
            for tag, (size, count) in SIZES.items()
        ]
    )


def _growth(setup: Setup, tag: str) -> float:
    size, full = SIZES[tag]
    count = setup.size(full, 50)
    with (
        receiving(DispatcherSettings().delivery_threads) as receiver,
        serving(setup.scratch / f"memory-{tag}", callbacks=receiver.addresses) as service,
    ):
        service.add_image(pictures.padded(size), tag)
        start = Submitter(service, *receiver.urls, text=f"a {tag}")
        receiver.expect(1)
        start().result()
        receiver.wait()
        before = _memory(service.process_id, "VmRSS")
        # The peak begins anew here: taking the image in is not what is measured. See proc(5).
        Path(f"/proc/{service.process_id}/clear_refs").write_text("5", encoding="ascii")
        receiver.hold()
        calls_per_second(start, calls=count, in_flight=IN_FLIGHT)
        time.sleep(2)  # every thread has a body that nobody answers
        receiver.expect(count)
        receiver.wait()
        return (_memory(service.process_id, "VmHWM") - before) / _MB


def _memory(process_id: int, entry: str) -> int:
    """Return an *entry* of a process's memory, in bytes."""
    for line in Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == entry:
            return int(value.split()[0]) * 1024
    raise KeyError(entry)
