"""Posting lists of many images, immutable and mapped from files.

Images are numbered by ordinals, 0 for the one stored first, so that "stored first" is "lowest
ordinal". Each tag has a list of the ordinals that carry it, ascending, and their confidences
(millionths). A long list also has a head, its best entries; a common tag also has bitmaps of
all ordinals, by which a million images are looked at in microseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Ints = NDArray[np.signedinteger[Any]]
    Words = NDArray[np.uint64]

#: Entries in the head of a list: the most images that can be asked for, and some that changed.
HEAD: Final = 128

_ONE: Final = np.uint64(1)

#: The bitmaps of a common tag: of all its list, of the best quarter, and of the best sixteenth.
LEVELS: Final = (1, 4, 16)

#: The arrays of a segment, each in a file of its own, little-endian.
ARRAYS: Final = {
    "images": "<i8",  # ordinal -> image number
    "starts": "<i8",  # tag id -> where its list starts in the next two
    "ordinals": "<i4",
    "confidences": "<i4",
    "long_tags": "<i4",  # the tags with heads, ascending
    "heads": "<i4",  # HEAD for each: positions in the tag's list, best first
    "common_tags": "<i4",  # the tags with bitmaps, ascending
    "bits": "<u8",  # for each and each of LEVELS: a bit per ordinal, in words of 64
    "bits_from": "<i4",  # for each and each of LEVELS: the least confidence that has a bit
    "ranks": "<i4",  # for each: how many of the list come before each word of the first level
    "lengths": "<i8",  # of the arrays before this one: told from what was cut short
}


class Segment:
    """Read access to one segment. Safe to use from any thread.

    Raises:
        ValueError: The files are not as they were written.
        OSError: They cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        arrays = {name: _mapped(folder / name, dtype) for name, dtype in ARRAYS.items()}
        *lengths, _ = map(len, arrays.values())
        if lengths != arrays["lengths"].tolist():
            msg = f"the index in {folder.name} is damaged"
            raise ValueError(msg)
        #: Of the folder.
        self.name = folder.name
        #: Ordinal -> image number, ascending.
        self.images: NDArray[np.int64] = arrays["images"]
        self._starts = arrays["starts"].tolist()
        self._ordinals: Ints = arrays["ordinals"]
        self._confidences: Ints = arrays["confidences"]
        self._heads: Ints = arrays["heads"].reshape(-1, HEAD)
        self._head_of = {tag: row for row, tag in enumerate(arrays["long_tags"].tolist())}
        self._bitmap_of = {tag: row for row, tag in enumerate(arrays["common_tags"].tolist())}
        self._bits = arrays["bits"].reshape(-1, len(LEVELS), words_for(len(self)))
        self._bits_from = arrays["bits_from"].reshape(-1, len(LEVELS)).tolist()
        self._ranks: Ints = arrays["ranks"].reshape(-1, words_for(len(self)))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def ordinal(self, seq: int) -> int | None:
        """Return the ordinal of image number *seq*, None if it is not here."""
        ordinal = int(self.images.searchsorted(np.int64(seq)))
        return ordinal if ordinal < len(self) and self.images[ordinal] == seq else None

    @property
    def tags(self) -> int:
        """Tag ids are below this."""
        return len(self._starts) - 1

    def size(self, tag: int) -> int:
        """Return how many images carry *tag*."""
        return int(self._starts[tag + 1] - self._starts[tag]) if tag < self.tags else 0

    def ordinals(self, tag: int) -> Ints:
        """Return the ordinals of the images that carry *tag*, ascending."""
        return self._ordinals[self._starts[tag] : self._starts[tag + 1]]

    def confidences(self, tag: int) -> Ints:
        """Return the confidences that go with `ordinals`."""
        return self._confidences[self._starts[tag] : self._starts[tag + 1]]

    def confidence(self, tag: int, ordinal: int) -> int:
        """Return the confidence of *tag* for one image, 0 if it does not carry it."""
        if not self.size(tag):
            return 0
        listed = self.ordinals(tag)
        # As the list's own type: searching for another would copy the list.
        place = int(listed.searchsorted(np.int32(ordinal)))
        found = place < len(listed) and listed[place] == ordinal
        return int(self.confidences(tag)[place]) if found else 0

    def head(self, tag: int) -> Ints:
        """Return the positions in the list of *tag* of its at most `HEAD` best entries.

        Best first: the highest confidence, then the image stored first.
        """
        row = self._head_of.get(tag)
        return best_positions(self.confidences(tag)) if row is None else self._heads[row]

    def is_common(self, tag: int) -> bool:
        """Tell whether *tag* has a bitmap."""
        return tag in self._bitmap_of

    def bits(self, tag: int, at_least: int) -> Words:
        """Return a bitmap of the ordinals that carry a common *tag* with *at_least* a confidence.

        Others that carry it may be there, too. Bit ``o & 63`` of word ``o >> 6`` is ordinal ``o``.
        """
        row = self._bitmap_of[tag]
        level = max(1, bisect_right(self._bits_from[row], at_least)) - 1
        bits: Words = self._bits[row, level]
        return bits

    def look_up(self, tag: int, ordinals: Ints) -> Ints:
        """Return the confidences of *tag* for images, 0 for those that do not carry it."""
        confidences = self.confidences(tag)
        row = self._bitmap_of.get(tag)
        if row is None:
            listed = self.ordinals(tag)
            places = np.searchsorted(listed, ordinals)
            places[places == len(listed)] = 0
            return np.where(listed[places] == ordinals, confidences[places], 0)
        word = ordinals >> 6
        bit = (ordinals & 63).astype(np.uint64)
        words = self._bits[row, 0, word]
        there = np.flatnonzero(words >> bit & _ONE)
        word, bit, words = word[there], bit[there], words[there]
        before = np.bitwise_count(words & ((_ONE << bit) - _ONE))
        found = np.zeros(len(ordinals), np.int32)
        found[there] = confidences[self._ranks[row, word] + before]
        return found


def best_positions(confidences: Ints) -> Ints:
    """Return the positions of the `HEAD` highest, of equal ones the first first."""
    if len(confidences) > HEAD:
        cut = len(confidences) - HEAD
        least = np.partition(confidences, cut)[cut]
        above = np.flatnonzero(confidences > least)
        equal = np.flatnonzero(confidences == least)[: HEAD - len(above)]
        candidates = np.concatenate([above, equal])
    else:
        candidates = np.arange(len(confidences))
    order = np.lexsort((candidates, -confidences[candidates]))
    return candidates[order].astype(np.int32)


def words_for(images: int) -> int:
    """Return how many words a bitmap of so many images has, at least one."""
    return max(1, (images + 63) // 64)


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:  # cannot be mapped
        return np.empty(0, dtype)
    # A plain view: slices of np.memmap itself cost a microsecond more each.
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
