"""For what ends without telling anybody."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, timeout: float = 30) -> None:
    """Return as soon as *condition* holds.

    Raises:
        TimeoutError: It does not after *timeout* seconds.
    """
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= until:
            msg = f"not so after {timeout} s"
            raise TimeoutError(msg)
        threading.Event().wait(0.005)
