"""The generated part of docs/performance.md: the table between two comments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks.report import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BEGIN: Final = "<!-- written by make bench: begin -->"
END: Final = "<!-- written by make bench: end -->"


def update(path: Path, rows: Mapping[str, Any]) -> None:
    """Put the table of *rows* (as in the JSON) into the document."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(_lines(rows))
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf-8")


def _lines(rows: Mapping[str, Any]) -> Iterator[str]:
    machines = {name: _machine(row["machine"]) for name, row in rows.items()}
    for machine in dict.fromkeys(machines.values()):
        of = [f"`{name}`" for name in rows if machines[name] == machine]
        yield f"Measured on {machine}" + (f": {', '.join(of)}." if len(of) < len(rows) else ".")
        yield ""
    yield "| row | measured | median (min to max) | must | goal | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, row in rows.items():
        for figure in row["figures"]:
            yield _line(name, figure)
    yield ""
    yield "What is behind them, medians:"
    yield ""
    yield "| row | measured | |"
    yield "| --- | --- | --- |"
    for name, row in rows.items():
        for figure in row["figures"]:
            if figure["details"]:
                details = ", ".join(f"{key} **{shown(v)}**" for key, v in figure["details"].items())
                yield f"| `{name}` | {figure['title']} | {details} |"


def _line(name: str, figure: Mapping[str, Any]) -> str:
    against = f" ÷ {figure['baseline']}" if figure["baseline"] else ""
    median, least, most = (shown(figure[each]) for each in ("median", "min", "max"))
    bounds = [""] * 2
    if figure["verdict"]:
        sign = "≤ " if figure["goal"] < figure["must"] else ""
        bounds = [sign + shown(figure["must"]), sign + shown(figure["goal"])]
    cells = [
        f"`{name}`",
        figure["title"] + against,
        f"**{median}** {figure['unit']} ({least} to {most})",
        *bounds,
        figure["verdict"],
    ]
    return f"| {' | '.join(cells)} |"


def _machine(facts: Mapping[str, str]) -> str:
    return (
        f"{facts['CPU']}, {facts['cores']} cores, {facts['RAM']}, kernel {facts['kernel']},"
        f" Python {facts['Python']}, SQLite {facts['SQLite']}, on {facts['date']}"
    )
