"""What came out, on the terminal and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from benchmarks.harness import Figure, Findings, Target


_STYLES: Final = {"goal": "green", "must": "yellow", "missed": "red"}


@dataclass(frozen=True, slots=True)
class Results:
    """What rows found, the latest of each, as it stands in a JSON file."""

    folder: Path
    rows: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Results:
        """Read what is there."""
        path = folder / "results.json"
        return cls(folder, json.loads(path.read_text())["rows"] if path.exists() else {})

    def keep(self, row: str, findings: Findings, *, order: Sequence[str]) -> None:
        """Write *findings* in place of what *row* found before; rows stand in *order*."""
        self.rows[row] = {
            "machine": machine.facts(),
            "figures": [_plain(figure) for figure in findings.figures],
            "growths": [
                {"name": each.name, "x": each.x, "y": each.y, "lines": dict(each.lines)}
                for each in findings.growths
            ],
        }
        ordered = {name: self.rows[name] for name in order if name in self.rows}
        self.rows.clear()
        self.rows.update(ordered)
        self.folder.mkdir(exist_ok=True)
        text = json.dumps({"rows": self.rows}, indent=1, ensure_ascii=False)
        (self.folder / "results.json").write_text(text + "\n")


def _plain(figure: Figure) -> dict[str, Any]:
    target = figure.target
    return {
        "title": figure.title,
        "baseline": figure.baseline,
        "unit": figure.unit,
        "median": figure.median,
        "min": min(figure.runs),
        "max": max(figure.runs),
        "runs": list(figure.runs),
        "must": target.must if target else None,
        "goal": target.goal if target else None,
        "verdict": figure.verdict,
        "details": dict(figure.details),
    }


def show(console: Console, row: str, findings: Findings, *, seconds: float) -> None:
    """Print what *row* found, and how long that took."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left")
    table.title = f"{row} ({seconds:.0f} s)"
    table.add_column("measured")
    for name in ("median", "min", "max", "must", "goal", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in findings.figures:
        against = [f"÷ {figure.baseline}"] if figure.baseline else []
        details = [f"{name}: {shown(value)}" for name, value in figure.details.items()]
        table.add_row(
            Text.assemble(figure.title, *((f"\n{line}", "dim") for line in against + details)),
            *(
                f"{shown(value)} {figure.unit}"
                for value in (figure.median, min(figure.runs), max(figure.runs))
            ),
            *_bounds(figure.target),
            Text(figure.verdict, _STYLES.get(figure.verdict, "")),
        )
    console.print(table)
    for growth in findings.growths:
        for label, points in growth.lines.items():
            line = "  ".join(f"{x:,g}: {shown(y)}" for x, y in points)
            console.print(f"{growth.name}, {label} ({growth.y}): {line}", style="dim")
    console.print()


def shown(value: float) -> str:
    """Return *value* with the three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _bounds(target: Target | None) -> tuple[str, str]:
    if target is None:
        return "", ""
    sign = "≤ " if target.at_most else ""
    return f"{sign}{shown(target.must)}", f"{sign}{shown(target.goal)}"
