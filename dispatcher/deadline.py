"""A timeout is a budget for the whole call, not for each step: one deadline for all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on a clock that is never set.

    Attributes:
        at: In seconds on *clock*.
        clock: Monotonic, so that a changed wall clock neither ends nor prolongs an attempt.
        owner: For whom the call is made: whose share of what is scarce it uses.
    """

    at: float
    clock: Callable[[], float] = time.monotonic
    owner: str = ""

    def left(self) -> float:
        """Return the seconds that are left, more than 0: fit for ``socket.settimeout``.

        Raises:
            TimeoutError: None are left.
        """
        left = self.at - self.clock()
        if left <= 0:
            msg = "the deadline has passed"
            raise TimeoutError(msg)
        return left
