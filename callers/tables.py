"""Prints answers on stdout: JSON for programs, tables for people.

Texts and tags come from strangers: what reaches a terminal passes `one_line`, or a query
could move the cursor and recolour the screen. Colours appear on a terminal only.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

import click
from google.protobuf.json_format import MessageToDict
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message

#: Cells that mean good, under way or bad, and how a terminal shows them.
_STYLES: Final = {
    "new": "green",
    "READY": "green",
    "DELIVERED": "green",
    "PENDING": "yellow",
    "QUEUED": "yellow",
    "DELIVERING": "yellow",
    "CANCELLED": "dim",
    "UNMATCHED": "dim",
    "FAILED": "red",
    "refused": "red",
}
#: Spaces between columns, and the least room for the last one, in cells.
_GAP: Final = 2
_MIN_ROOM: Final = 12


def one_line(text: str) -> str:
    r"""Return *text* with everything that is not printable escaped, as in \n or \x1b."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def to_dict(message: Message) -> dict[str, object]:
    """Return *message* as ProtoJSON with the names of the .proto files.

    Fields without a value are there too, but for unset messages: a program finds the
    same names in every document.
    """
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_json(document: Mapping[str, object]) -> None:
    """Print *document* as one line."""
    click.echo(json.dumps(document))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print *rows*: on a terminal in its width, elsewhere as aligned text that is never cut."""
    lines = [[one_line(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_aligned([[heading.upper() for heading in headings], *lines])
        return
    console = Console(highlight=False)
    *others, _ = _widths([headings, *lines])
    room = max(console.width - sum(others) - _GAP * len(headings), _MIN_ROOM)
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in {"file", headings[-1]})
    for line in lines:
        cells = [Text(cell, style=_STYLES.get(cell, "")) for cell in line]
        cells[-1].truncate(room, overflow="ellipsis")
        table.add_row(*cells)
    console.print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print pairs of a label and a value, one a line; empty values are left out."""
    lines = [(label, one_line(value)) for label, value in facts if value]
    width = max(len(label) for label, _ in lines)
    console = Console(highlight=False, soft_wrap=True) if sys.stdout.isatty() else None
    for label, value in lines:
        if console is None:
            click.echo(f"{label:<{width}}  {value}")
        else:
            styled = (value, _STYLES.get(value, ""))
            console.print(Text.assemble((f"{label:<{width}}  ", "bold"), styled))


def _print_aligned(lines: Sequence[Sequence[str]]) -> None:
    widths = _widths(lines)
    for line in lines:
        padded = [
            cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)
        ]
        click.echo((" " * _GAP).join(padded).rstrip())


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return how many cells of a terminal each column needs."""
    return [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]
