"""A server's child processes, and the memory of all of them, as the kernel sees it (Linux)."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def children_of(process_id: int) -> list[int]:
    """Return the process ids of the children of all threads of a process."""
    found = []
    for task in Path(f"/proc/{process_id}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += [int(child) for child in task.read_text().split()]
    return found


def resident_bytes(process_id: int) -> int:
    """Return the resident memory of a process and its children together."""
    total = 0
    for each in (process_id, *children_of(process_id)):
        with suppress(OSError):  # it has ended
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
    return total


class Peak:
    """The most memory that was seen."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def watching_memory(process_id: int) -> Iterator[Peak]:
    """Look at the memory of a process and its children again and again while the block runs."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak.bytes = max(peak.bytes, resident_bytes(process_id))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
