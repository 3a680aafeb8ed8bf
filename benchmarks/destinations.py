"""Row `destinations`: what it costs that there are many of them.

* a backlog for 10,000 destinations, by one for 20, each worked off after a start
* a backlog for 20 destinations beside 10,000 that refuse, by the same without them; and the
  processor time of a server that has nothing but the 10,000, in its first minute
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import crowd
from benchmarks.harness import Figure, Findings, Target, median_of, paired, ratios

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from benchmarks.crowd import Crowd, Server
    from benchmarks.harness import Setup

_FEW: Final = 20
#: Seconds after which a receiver answers.
_ANSWER_AFTER: Final = 0.01
#: Seconds until a backlog is due beside which others refuse: time to start, and to try those once.
_WARM_UP: Final = 12.0
#: Seconds over which the processor time is taken.
_MINUTE: Final = 60.0


def measure(setup: Setup) -> Findings:
    """Compare callbacks per second by the number of destinations."""
    many = setup.size(10_000, 500)
    runs = min(setup.runs, 3)
    with crowd.receiving(answer_after=_ANSWER_AFTER) as receivers:
        drained = paired(
            runs,
            {
                "many": lambda: _drain(receivers, setup.scratch, many, many),
                "few": lambda: _drain(receivers, setup.scratch, _FEW, many),
            },
        )
        beside = paired(
            runs,
            {
                "with": lambda: _drain(receivers, setup.scratch, _FEW, many // 2, refusing=many),
                "without": lambda: _drain(receivers, setup.scratch, _FEW, many // 2),
            },
        )
        refused = [
            _refused(receivers, setup.scratch, many, _MINUTE if not setup.quick else 3.0)
            for _ in range(1 if setup.quick else 2)
        ]
    memory = [run["many"]["memory"] - run["few"]["memory"] for run in drained]
    rates = [{name: each["rate"] for name, each in run.items()} for run in drained]
    rates_beside = [{name: each["rate"] for name, each in run.items()} for run in beside]
    return Findings(
        figures=[
            Figure(
                title=f"callbacks per second, {many:,} destinations",
                baseline=f"the same backlog for {_FEW}",
                unit="x",
                runs=ratios(rates, "many", "few"),
                target=Target(must=0.8, goal=0.95),
                details={
                    f"{many:,} destinations, callbacks/s": median_of(rates, "many"),
                    f"{_FEW} destinations, callbacks/s": median_of(rates, "few"),
                    "memory of a destination, bytes": sorted(memory)[len(memory) // 2] / many,
                },
            ),
            Figure(
                title=f"callbacks per second of {_FEW} beside {many:,} that refuse",
                baseline="the same without those",
                unit="x",
                runs=ratios(rates_beside, "with", "without"),
                target=Target(must=0.9, goal=0.95),
                details={
                    "with, callbacks/s": median_of(rates_beside, "with"),
                    "without, callbacks/s": median_of(rates_beside, "without"),
                },
            ),
            Figure(
                title=f"processor time for {many:,} that refuse, in the first minute",
                unit="s",
                runs=refused,
                target=Target(must=30, goal=20, at_most=True),
            ),
        ]
    )


def _drain(
    receivers: Crowd, scratch: Path, destinations: int, queries: int, *, refusing: int = 0
) -> dict[str, float]:
    """Work a backlog off; return callbacks per second, and the server's memory after it."""
    good = [f"{crowd.address(number)}:{receivers.answering}" for number in range(destinations)]
    bad = [f"{crowd.address(number)}:{receivers.refusing}" for number in range(refusing)]
    queued = [*(good * (queries // destinations)), *bad]
    with _queued(scratch, queued, {*good, *bad}, due_in=_WARM_UP if refusing else 0.0) as warm:
        server, token = warm
        if refusing:  # those that answer are known by then, as in a server that has run for a while
            for each in good:
                server.submit(f"http://{each}/warm", token=token).result()
            receivers.report(len(good), path="/warm")
        arrivals = sorted(receivers.report(queries // destinations * destinations).values())
        begun = len(arrivals) // 10  # the first round of turns belongs to what was asleep
        return {
            "rate": (len(arrivals) - begun) / (arrivals[-1] - arrivals[begun]),
            "cpu": server.cpu_seconds() / len(arrivals),
            "memory": server.memory_bytes(),
        }


def _refused(receivers: Crowd, scratch: Path, destinations: int, seconds: float) -> float:
    """Return the processor seconds that a server uses of which all destinations refuse."""
    bad = [f"{crowd.address(number)}:{receivers.refusing}" for number in range(destinations)]
    with _queued(scratch, bad, bad) as (server, _):
        before = server.cpu_seconds()
        time.sleep(seconds)
        return server.cpu_seconds() - before


@contextmanager
def _queued(
    scratch: Path, queued: Sequence[str], callbacks: Collection[str], *, due_in: float = 0.0
) -> Iterator[tuple[Server, str]]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        data = Path(folder) / "data"
        urls = [f"http://{each}/" for each in queued]
        tokens = crowd.fill(data, {"default": urls}, due_in=due_in)
        with crowd.serving(data, callbacks=callbacks) as server:
            yield server, tokens["default"]
