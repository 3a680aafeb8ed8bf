"""What one API key does to another one's callbacks.

``python -m benchmarks.fairness`` (about ten minutes). A hostile key does one of four things; another
key submits queries at fixed times, to receivers that answer after 10 ms. Compared is the 99th
percentile from when each query was to be submitted until its POST arrived, with the hostile key's
queries and without, in pairs of runs, each with a new server.

* hanging: it has queries for 10,000 destinations that accept and say nothing
* backlog: it has 200,000 queries for the host and port that the other key calls
* broken: it has 60 queries for paths that answer 500, on the host that the other key calls
* names: it has queries for 200 names whose name servers do not answer
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks import crowd
from benchmarks.harness import paired, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.crowd import Crowd, Server

#: Most that the median of the pairs' ratios may be.
MUST: Final = 2.0
#: Offered load, per second and for how many seconds.
RATE: Final = 40
LOAD_SECONDS: Final = 10
#: Path of the other key's callbacks, by which they are told from the hostile one's.
_PATH: Final = "/good"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to be hostile."""

    #: Callback URLs of the queries that the hostile key has queued.
    queued: Callable[[Crowd], Sequence[str]]
    module: str = "server"


ROWS: Final = {
    "hanging": Row(
        queued=lambda receivers: [
            f"http://{crowd.address(1000 + number)}:{receivers.hanging}/"
            for number in range(10_000)
        ]
    ),
    "backlog": Row(
        queued=lambda receivers: 200_000 * [f"http://{crowd.address(0)}:{receivers.answering}/"]
    ),
    "broken": Row(
        queued=lambda receivers: [
            f"http://{crowd.address(0)}:{receivers.answering}/broken/{number}"
            for number in range(60)
        ]
    ),
    "names": Row(
        queued=lambda receivers: [
            f"http://hang{number}.example.com:{receivers.answering}/" for number in range(200)
        ],
        module="benchmarks.hanging_names",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON; 0 when every row's median is at most what it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="all if none")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--answer-after", type=float, default=0.01, help="seconds")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fairness.json"))
    options = parser.parse_args(arguments)
    facts: dict[str, dict[str, object]] = {}
    worst = 0.0
    print(f"{'':<8} {'without':>9} {'with':>9}  ratio of p99 (at most {MUST})")
    for name in options.rows or ROWS:
        row = ROWS[name]
        with crowd.receiving(answer_after=options.answer_after) as receivers:
            runs = paired(
                options.pairs,
                {
                    "with": lambda row=row, to=receivers: _p99(row, to, hostile=True),  # type: ignore[misc] # mypy reads no defaults of lambdas
                    "without": lambda row=row, to=receivers: _p99(row, to, hostile=False),  # type: ignore[misc]
                },
            )
        ratios = [run["with"] / run["without"] for run in runs]
        without, with_ = (
            f"{1000 * median(run[each] for run in runs):.1f} ms" for each in ("without", "with")
        )
        print(
            f"{name:<8} {without:>9} {with_:>9}  {median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
        facts[name] = {"ratios": ratios, "runs": runs}
        worst = max(worst, median(ratios))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=1) + "\n")
    return 0 if worst <= MUST else 1


def _p99(row: Row, receivers: Crowd, *, hostile: bool) -> float:
    """Return the 99th percentile of the other key's callbacks, in seconds."""
    queued = row.queued(receivers)
    where = f"{crowd.address(0)}:{receivers.answering}"
    callbacks = {where, *(url.split("/", 3)[2] for url in queued)}
    with tempfile.TemporaryDirectory(prefix="picback-fairness-") as scratch:
        data = Path(scratch) / "data"
        tokens = crowd.fill(data, {"hostile": queued if hostile else (), "other": ()})
        with crowd.serving(data, callbacks=callbacks, module=row.module) as server:
            return _load(server, receivers, f"http://{where}{_PATH}", tokens["other"])


def _load(server: Server, receivers: Crowd, url: str, token: str) -> float:
    server.submit(url, token=token).result()
    receivers.report(1, path=_PATH)
    calls = []
    begin = time.monotonic()
    for number in range(RATE * LOAD_SECONDS):
        due = begin + number / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        calls.append((due, server.submit(url, token=token)))
    submitted = {call.result().query.id: due for due, call in calls}
    arrivals = receivers.report(len(submitted), path=_PATH)
    return percentile([arrivals[each] - due for each, due in submitted.items()], 99)


if __name__ == "__main__":
    sys.exit(main())
