"""Row `start-up`: what a matcher takes until it is ready, and what it holds from then on.

Measured in a process of its own, as a server that starts anew (``python -m benchmarks.start_up
FOLDER``): seconds from opening the index to being ready, and by how much the process has grown when
200 queries have been answered. Memory of its own is told apart from pages of files that the kernel
may take back at any time and shares between processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import corpus, libraries
from benchmarks.harness import Figure, Findings, Target
from benchmarks.matching import opened_matcher

if TYPE_CHECKING:
    from benchmarks.harness import Setup

_SMAPS_KB = 1024 / 1e6


def measure(setup: Setup) -> Findings:
    """Measure seconds and megabytes."""
    images = setup.size(1_000_000, 10_000)
    folder = libraries.picback(setup, images)
    _start(folder)  # an index that is not there yet is made once, not at every start
    runs = [_start(folder) for _ in range(setup.runs)]
    return Findings(
        figures=[
            Figure(
                title=f"match memory, {images:,} images, mapped files included",
                unit="MB",
                runs=[run["private"] + run["mapped"] for run in runs],
                target=Target(must=400, goal=250, at_most=True),
            ),
            Figure(
                title="match memory without mapped files",
                unit="MB",
                runs=[run["private"] for run in runs],
            ),
            Figure(
                title=f"match start-up, {images:,} images",
                unit="s",
                runs=[run["seconds"] for run in runs],
                target=Target(must=3, goal=1, at_most=True),
            ),
        ]
    )


def _start(folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _started(folder: Path) -> dict[str, float]:
    before = _memory()
    begun = time.perf_counter()
    with opened_matcher(folder) as matcher:
        seconds = time.perf_counter() - begun
        for tags in corpus.mixed_queries(200):
            matcher.match(" ".join(map(libraries.word, tags)), limit=1)
        after = _memory()
    return {"seconds": seconds, **{name: after[name] - before[name] for name in before}}


def _memory() -> dict[str, float]:
    """Return megabytes: anonymous memory, and pages of files that are in memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
    }
    private = kilobytes["Anonymous"] * _SMAPS_KB
    return {"private": private, "mapped": kilobytes["Rss"] * _SMAPS_KB - private}


if __name__ == "__main__":
    print(json.dumps(_started(Path(sys.argv[1]))))
