"""Names of image files: what the callers' commands write, and what they take from a folder."""

from __future__ import annotations

from typing import Final

#: Endings by media type. What is written gets its name from here, never from a stranger.
SUFFIXES: Final = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
}
#: Endings of the files taken from a folder. The server looks at the bytes, never at names.
TAKEN_SUFFIXES: Final = frozenset({*SUFFIXES.values(), ".jpeg", ".tif"})
