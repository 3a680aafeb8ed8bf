"""Keeps the threads that run Python together on one processor core.

Python's lock lets one thread at a time run Python, and each gives it back at every system call
and every step of SQL. Spread over cores, as the kernel spreads them, almost every such moment
wakes another core; together on one, whoever gives the lock back mostly gets it again before
anyone else has run. docs/performance.md has what that is worth. Work that does without the lock
for long (large bodies, shared commits, gRPC's own threads) stays where the kernel puts it; images
are decoded and tagged in processes of their own.

The rule a newcomer would break: a thread begins where the one that started it is at home, so
threads that belong elsewhere are sent there again at each look.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

logger = logging.getLogger(__name__)

#: How often to look, in seconds: threads come and go, and so do a core's other users.
LOOK_SECONDS: Final = 5.0
#: Beginnings of the names of threads that do without Python's lock for long.
_ELSEWHERE: Final = (
    "MainThread",
    "picback-body",
    "picback-commit",
    "picback-index",
)
#: Share of our core's time that others may take before we look for a calmer one ...
_DISTURBED: Final = 0.25
#: ... how much calmer that must be, for moving costs warm caches ...
_CALMER: Final = 0.25
#: ... and by how much cores may differ that are equally good.
_AS_CALM: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Processor time that was used until now, in clock ticks."""

    #: Core -> (busy, busy or idle), whoever used it.
    cores: Mapping[int, tuple[int, int]]
    #: By our threads at home.
    ours: int


def allowed_cores() -> frozenset[int]:
    """Return the cores that this process may use; none where the system cannot tell."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return frozenset() if affinity is None else frozenset(affinity(0))


def read_usage() -> Usage:
    """Return what /proc says; see proc(5).

    Raises:
        OSError: There is no /proc.
        ValueError: It is none that we know.
    """
    cores = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            # user nice system idle iowait irq softirq steal; the others are part of these
            ticks = [int(field) for field in fields[:8]]
            cores[int(name.removeprefix("cpu"))] = (sum(ticks) - ticks[3] - ticks[4], sum(ticks))
    ours = 0
    for thread, is_at_home in _threads():
        if is_at_home:
            with suppress(FileNotFoundError):  # it has ended meanwhile
                stat = Path(f"/proc/self/task/{thread}/stat").read_text()
                ours += sum(map(int, stat.rpartition(")")[2].split()[11:13]))  # utime and stime
    return Usage(cores=cores, ours=ours)


class HomeCore:
    """One core for all threads but a few; a calmer one when others want it, too.

    Used by one thread. Does nothing where there is no choice, or the system cannot tell.

    Args:
        core: Which; None for the calmest one, now and later.
        allowed: Cores that this process may use.
        usage: As `read_usage`.
        send: As `os.sched_setaffinity`: lets a thread use these cores only.
        rng: Chooses between cores that are as calm, lest several servers choose the same.
    """

    def __init__(
        self,
        core: int | None,
        *,
        allowed: frozenset[int],
        usage: Callable[[], Usage] = read_usage,
        send: Callable[[int, Collection[int]], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._core = core
        self._moves = core is None
        self._allowed = allowed
        self._usage = usage
        self._send = send or getattr(os, "sched_setaffinity", None)
        self._rng = rng or random.SystemRandom()
        self._before = self._look()

    def gather(self) -> None:
        """Send every thread where it belongs; first, if ours is disturbed, choose another core."""
        if self._send is None or len(self._allowed) < 2:
            return
        if self._moves:
            self._choose()
        if self._core is None:
            return
        try:
            for thread, is_at_home in _threads():
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    self._send(thread, {self._core} if is_at_home else self._allowed)
        except OSError as error:  # the cores that we may use have changed since the start
            self._send = None
            logger.warning("threads.homeless", extra={"core": self._core, "error": str(error)})

    def _choose(self) -> None:
        before, self._before = self._before, self._look()
        if before is None or self._before is None:
            return
        loads = _loads_by_others(before, self._before, home=self._core)
        loads = {core: load for core, load in loads.items() if core in self._allowed}
        calmest = min(loads.values(), default=0.0)
        here = loads.get(self._core, 1.0) if self._core is not None else 1.0
        if self._core is not None and (here < _DISTURBED or here < calmest + _CALMER):
            return
        calm = [core for core, load in loads.items() if load <= calmest + _AS_CALM]
        if calm:
            self._core = self._rng.choice(calm)
            logger.debug("threads.home", extra={"core": self._core})

    def _look(self) -> Usage | None:
        try:
            return self._usage()
        except (OSError, ValueError):
            return None


def _threads() -> list[tuple[int, bool]]:
    """Return Python's threads, by the kernel's ids, and whether they belong home."""
    return [
        (thread.native_id, not thread.name.startswith(_ELSEWHERE))
        for thread in threading.enumerate()
        if thread.native_id is not None  # it is just starting
    ]


def _loads_by_others(before: Usage, now: Usage, *, home: int | None) -> dict[int, float]:
    """Return, for each core, the share of its time that others than our threads used."""
    loads = {}
    for core, (busy, all_) in now.cores.items():
        busy_before, all_before = before.cores.get(core, (0, 0))
        used = busy - busy_before - (now.ours - before.ours if core == home else 0)
        loads[core] = max(0, used) / max(1, all_ - all_before)
    return loads
