"""The scheduler's clock: it shows the wall clock's time at first, then passes as real time does.

Every time at which a query or a probe is due is of this clock, so that a wall clock that is set,
forward or back, neither delays nor hurries anything. Within one boot of the machine it also goes on
through restarts of the process, and while the machine is suspended. What it cannot know is how long
the machine was off: then the wall clock is asked, and believed as far as it contradicts nothing that
is stored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
#: A wall clock that moved more than this against real time was set, in milliseconds.
_MIN_STEP: Final = 1_000


def elapsed_time() -> int:
    """Return milliseconds that pass as real time does; from an arbitrary moment."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # Linux: goes on in suspension
    return time.clock_gettime_ns(clock) // 1_000_000


def boot_id() -> str:
    """Return what tells this boot of the machine from others; "" if nothing does."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockRecord:
    """What a later process needs to go on with this clock. In milliseconds."""

    boot: str
    #: What the clock shows, less `elapsed_time`: constant during a boot.
    offset: int
    #: What the clock shows, less the wall clock: constant unless that is set.
    ahead: int
    #: What the clock showed when this was recorded.
    seen: int

    def dump(self) -> bytes:
        """Return it as bytes to be stored."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, stored: bytes) -> ClockRecord:
        """Return what `dump` made bytes of."""
        return cls(**json.loads(stored))


class SteadyClock:
    """Tells the scheduler's time in milliseconds since about the epoch. Safe to share.

    Args:
        wall: The wall clock.
        elapsed: As `elapsed_time`.
        boot: As `boot_id`.
        record: What an earlier process left.
        newest: The latest moment that is known to have passed, by this clock; 0: none.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], int],
        elapsed: Callable[[], int] = elapsed_time,
        boot: str = "",
        record: ClockRecord | None = None,
        newest: int = 0,
    ) -> None:
        self._wall = wall
        self._elapsed = elapsed
        self._boot = boot
        self._offset = wall() - elapsed()
        if record is not None and boot and record.boot == boot:
            self._offset = record.offset
        elif record is not None:
            shown = max(wall() + record.ahead, record.seen)
            self._offset = shown - elapsed()
        self._offset = max(self._offset, newest - elapsed())
        self._ahead = self() - wall()

    def __call__(self) -> int:
        """Return the time."""
        return self._elapsed() + self._offset

    def wall_time(self, at: int) -> int:
        """Return what the wall clock shows, or would now have shown, at *at* of this clock."""
        return at - self._ahead

    def notice_step(self) -> bool:
        """Return whether the wall clock has been set since this was last asked; log it."""
        ahead = self() - self._wall()
        step = self._ahead - ahead
        if abs(step) < _MIN_STEP:
            return False
        self._ahead = ahead
        logger.warning("clock.stepped", extra={"step_ms": step})
        return True

    def record(self) -> ClockRecord:
        """Return what a later process needs to go on with this clock."""
        return ClockRecord(boot=self._boot, offset=self._offset, ahead=self._ahead, seen=self())
