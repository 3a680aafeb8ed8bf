"""``make bench``: measure rows, print them, keep them.

``make bench ROWS="submit lemmas"`` measures some; the others keep what they had. ``--quick`` only
tries whether everything works: sizes are small, and nothing is kept.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from benchmarks import (
    bulk,
    deliveries,
    destinations,
    document,
    end_to_end,
    latency,
    lemmas,
    matching,
    memory,
    one_core,
    plots,
    report,
    start_up,
    submit,
    upload,
)
from benchmarks.harness import Row, Setup

if TYPE_CHECKING:
    from collections.abc import Sequence


ROWS: Final = (
    Row(name="match", measure=matching.measure),
    Row(name="match-original", measure=matching.measure_original),
    Row(name="start-up", measure=start_up.measure),
    Row(name="submit", measure=submit.measure),
    Row(name="upload", measure=upload.measure),
    Row(name="lemmas", measure=lemmas.measure),
    Row(name="deliveries", measure=deliveries.measure),
    Row(name="destinations", measure=destinations.measure),
    Row(name="core", measure=one_core.measure),
    Row(name="end-to-end", measure=end_to_end.measure),
    Row(name="latency", measure=latency.measure),
    Row(name="memory", measure=memory.measure),
    Row(name="bulk", measure=bulk.measure),
)
_HERE: Final = Path(__file__).parent
_DOCUMENT: Final = _HERE.parent / "docs" / "performance.md"
#: Paired runs of each row.
_RUNS: Final = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; 0 unless something broke (a missed target breaks nothing)."""
    parser = argparse.ArgumentParser(prog="bench", description="what picback costs")
    names = [row.name for row in ROWS]
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"of {', '.join(names)}; all if none"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; keep nothing")
    options = parser.parse_args(arguments)
    for name in options.rows:
        if name not in names:
            parser.error(f"there is no row {name}: {', '.join(names)}")

    chosen = [row for row in ROWS if not options.rows or row.name in options.rows]
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    results = report.Results.of(_HERE / "results")
    with tempfile.TemporaryDirectory(prefix="picback-bench-") as scratch:
        setup = Setup(
            runs=2 if options.quick else _RUNS,
            quick=options.quick,
            cache=_HERE / ".cache",
            scratch=Path(scratch),
        )
        for row in chosen:
            gc.collect()
            begun = time.monotonic()
            findings = row.measure(setup)
            report.show(console, row.name, findings, seconds=time.monotonic() - begun)
            if not options.quick:
                results.keep(row.name, findings, order=names)
    if not options.quick:
        plots.draw(results.rows, results.folder)
        document.update(_DOCUMENT, results.rows)
        console.print("kept in benchmarks/results and docs/performance.md", style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(main())
