"""Rows, figures and their statistics; paired runs.

The rule a newcomer would break: product and baseline are never measured one after the other in
two blocks. A shared machine gets slower and faster by the minute, so each run of the one stands
beside a run of the other, and which goes first alternates.
"""

from __future__ import annotations

import gc
import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

#: How a figure stands to its target; "" for one that has none.
Verdict = Literal["goal", "must", "missed", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How thoroughly to measure, and where files may be put."""

    #: Paired runs of each row.
    runs: int
    #: Small sizes, to see whether everything works.
    quick: bool
    #: Kept for the next time: libraries that take a minute to make.
    cache: Path
    #: Thrown away at the end.
    scratch: Path

    def size(self, full: int, quick: int) -> int:
        """Return how much to do: *full*, or *quick* when only trying."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure must reach, and the goal beyond."""

    must: float
    goal: float
    #: Whether less is better, as with times; for ratios more is.
    at_most: bool = False

    def verdict(self, value: float) -> Verdict:
        """Tell how far *value* got."""
        for name, bound in (("goal", self.goal), ("must", self.must)):
            if value <= bound if self.at_most else value >= bound:
                return "goal" if name == "goal" else "must"
        return "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table.

    Attributes:
        title: What was measured.
        baseline: What it is divided by; empty for an absolute figure.
        unit: "x" for a ratio, otherwise "ms", "s" or "MB".
        runs: The figure of each run, or of each pair of runs.
        target: What it must reach; None where it is only of interest.
        details: Absolute medians behind it, for the curious: name with unit -> value.
    """

    title: str
    baseline: str = ""
    unit: str
    runs: Sequence[float]
    target: Target | None = None
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The middle one of the runs: what the table shows and the target is held against."""
        return statistics.median(self.runs)

    @property
    def verdict(self) -> Verdict:
        """How the median stands to the target."""
        return self.target.verdict(self.median) if self.target else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a cost grows: lines of (x, y), for a plot and for the curious."""

    name: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one row found."""

    figures: Sequence[Figure]
    growths: Sequence[Growth] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Something that can be measured by itself: ``make bench ROWS=name``."""

    name: str
    measure: Callable[[Setup], Findings]


def paired(runs: int, contestants: Mapping[str, Callable[[], T]]) -> list[dict[str, T]]:
    """Run all *contestants* *runs* times, in turn forwards and backwards.

    Returns:
        For each run what each contestant returned.
    """
    found = []
    names = list(contestants)
    for run in range(runs):
        gc.collect()  # nobody pays for another's garbage
        order = names if run % 2 == 0 else names[::-1]
        found.append({name: contestants[name]() for name in order})
    return found


def ratios(runs: Sequence[Mapping[str, float]], product: str, baseline: str) -> list[float]:
    """Return product by baseline of each run; the figures are rates, where more is better."""
    return [run[product] / run[baseline] for run in runs]


def median_of(runs: Sequence[Mapping[str, float]], name: str) -> float:
    """Return the median over all runs of what *name* returned."""
    return statistics.median(run[name] for run in runs)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of *values* that *percent* of them do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]
