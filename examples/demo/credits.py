"""Who took the photos: read from the table in photos/CREDITS.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_credits(path: Path) -> dict[str, str]:
    """Return a line of credit for each photo's file name: author and licence."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 4 or not cells[0].startswith("`"):
            continue
        author = re.split(r"[;,(]| with a link", cells[2].removeprefix("Named as "))[0].strip()
        licence = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cells[3])
        found[cells[0].strip("`")] = f"{author}, {re.sub(r' *[(].*', '', licence)}"
    return found
