"""Facts about the machine that figures depend on; nothing that tells whose it is."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

from storage import driver


def facts() -> dict[str, str]:
    """Return what a reader needs to know, by name."""
    memory = re.search(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "CPU": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "RAM": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "kernel": re.match(r"[\d.]*", platform.release())[0],  # type: ignore[index] # it matches anything
        "Python": platform.python_version(),
        "SQLite": driver.sqlite_version,
    }


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()
