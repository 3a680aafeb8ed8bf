"""Plots of what was found, as PNG. Their titles say what there is to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl

mpl.use("Agg")  # no window

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.report import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

_COLOURS: Final = ("#0b6e4f", "#b8741a", "#6c757d")
_VERDICT_COLOURS: Final = {"goal": "#0b6e4f", "must": "#b8741a", "missed": "#b3261e"}
_STYLE: Final[Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "axes.axisbelow": True,
}
_plain_numbers: Final = FuncFormatter(lambda value, _: f"{value:,.10g}")


def draw(rows: Mapping[str, Any], folder: Path) -> None:
    """Write what can be drawn of *rows* (as in the JSON) into *folder*."""
    growths = {growth["name"]: growth for row in rows.values() for growth in row.get("growths", ())}
    with mpl.rc_context(_STYLE):
        _draw_side_by_side(
            [growths.get(f"match by {what}") for what in ("images", "tags", "words")],
            [_match_by_images, _match_by_tags, _match_by_words],
            folder / "match.png",
        )
        _draw_side_by_side(
            [growths.get("deliveries by image size"), growths.get("deliveries by destinations")],
            [_deliveries_by_size, _deliveries_by_destinations],
            folder / "deliveries.png",
        )
        figures = [each for row in rows.values() for each in row["figures"] if each["verdict"]]
        _draw_targets(figures, folder / "targets.png")


def _draw_side_by_side(
    growths: Sequence[Mapping[str, Any] | None],
    drawings: Sequence[Callable[[Axes, Mapping[str, Any]], None]],
    path: Path,
) -> None:
    if not all(growths):
        return
    many = len(growths)
    figure, axes = plt.subplots(1, many, figsize=(5 * many, 3.8), layout="constrained")
    for each, growth, drawing in zip(axes, growths, drawings, strict=True):
        assert growth is not None  # noqa: S101 - for the type checker
        for (label, points), colour in zip(growth["lines"].items(), _COLOURS, strict=False):
            xs, ys = zip(*points, strict=True)
            each.plot(xs, ys, marker="o", markersize=4, color=colour, label=label)
        each.set_xlabel(growth["x"])
        each.set_ylabel(growth["y"])
        drawing(each, growth["lines"])
        each.xaxis.set_major_formatter(_plain_numbers)
        each.yaxis.set_major_formatter(_plain_numbers)
        each.legend(frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _match_by_images(axes: Axes, lines: Mapping[str, Any]) -> None:
    (images, sql), (_, product) = lines["indexed SQL"][-1], lines["picback"][-1]
    axes.set_title(f"At {images:,} images {sql / product:,.0f} times as fast as SQL")
    axes.set_xscale("log")
    axes.set_yscale("log")


def _match_by_tags(axes: Axes, lines: Mapping[str, Any]) -> None:
    (few, first), *_, (many, last) = lines["picback"]
    axes.set_title(f"{many / few:g} times the tags take {last / first:.1f} times the time")
    axes.set_ylim(bottom=0)
    axes.set_xticks([x for x, _ in lines["picback"]])


def _match_by_words(axes: Axes, lines: Mapping[str, Any]) -> None:
    slowest = max(y for points in lines.values() for _, y in points)
    axes.set_title(f"Up to ten words take at most {slowest:.2g} ms")
    axes.set_ylim(bottom=0)


def _deliveries_by_size(axes: Axes, lines: Mapping[str, Any]) -> None:
    shares = [
        f"{100 * product / bare:.0f} %"
        for (_, product), (_, bare) in zip(*lines.values(), strict=True)
    ]
    axes.set_title(f"By size: {', '.join(shares)} of what httpx alone can do")
    axes.set_xscale("log")
    axes.set_xticks([x for x, _ in lines["picback"]])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)


def _deliveries_by_destinations(axes: Axes, lines: Mapping[str, Any]) -> None:
    (_, one), *more = lines["picback"]
    many, best = max(more, key=lambda point: point[1])
    axes.set_title(f"{many:g} destinations get {best / one:.1f} times the callbacks of one")
    axes.set_xticks([x for x, _ in lines["picback"]])
    axes.set_ylim(bottom=0)


def _draw_targets(figures: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each figure as a multiple of what it must be, to the right if better."""
    if not figures:
        return
    figure, axes = plt.subplots(figsize=(10, 0.8 + 0.42 * len(figures)), layout="constrained")
    for place, each in enumerate(reversed(figures)):
        less = each["goal"] < each["must"]  # is better
        reached = {
            name: each["must"] / each[name] if less else each[name] / each["must"]
            for name in ("median", "min", "max", "goal")
        }
        colour = _VERDICT_COLOURS[each["verdict"]]
        axes.plot([reached["min"], reached["max"]], [place, place], color=colour, linewidth=2)
        axes.plot(reached["median"], place, "o", color=colour)
        axes.plot(reached["goal"], place, "|", color="#222222", markersize=13)
    names = [f"{each['title']}: {shown(each['median'])} {each['unit']}" for each in figures]
    axes.set_yticks(range(len(figures)), names[::-1])
    axes.axvline(1, color="#222222", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain_numbers)
    axes.set_xlabel("times better than it must be (line); goal: tick")
    reached_all = sum(each["verdict"] == "goal" for each in figures)
    missed = sum(each["verdict"] == "missed" for each in figures)
    axes.set_title(f"{reached_all} of {len(figures)} goals reached, {missed} below what must be")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
