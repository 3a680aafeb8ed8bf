"""Making a segment: an older one with changes merged in, list by list.

One list at a time is in memory, so making the index of a million images takes little of it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dispatcher.index.segment import ARRAYS, HEAD, LEVELS, best_positions, words_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dispatcher.index.recent import Postings
    from dispatcher.index.segment import Ints, Segment

#: A tag is common, and has bitmaps, when one image in so many carries it.
COMMON: Final = 64


def write_segment(folder: Path, old: Segment | None, changes: Changes) -> None:
    """Write a segment into a new *folder*, and see that it is on disk.

    Args:
        folder: To be made; its parent must be there.
        old: What to begin with.
        changes: They stand in place of what *old* says; an image without tags is gone.

    Raises:
        OSError: It could not be written; what there is of *folder* is useless.
    """
    folder.mkdir(mode=0o700)
    kept, images = _images(old, changes)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in ARRAYS}

        lengths = dict.fromkeys(ARRAYS, 0)

        def write(name: str, values: NDArray[Any] | Sequence[int]) -> None:
            np.asarray(values, ARRAYS[name]).tofile(files[name])
            lengths[name] += len(values)

        write("images", images)
        starts = [0]
        for tag in range(max(old.tags if old else 0, changes.tags)):
            ordinals, confidences = _merged(tag, old, kept, changes.postings(tag, images))
            write("ordinals", ordinals)
            write("confidences", confidences)
            starts.append(starts[-1] + len(ordinals))
            if len(ordinals) > HEAD:
                write("long_tags", [tag])
                write("heads", best_positions(confidences))
            if len(ordinals) * COMMON >= len(images) > HEAD:
                write("common_tags", [tag])
                for level in LEVELS:
                    least = _least_of_best(confidences, level)
                    write("bits_from", [least])
                    write("bits", _bitmap(ordinals[confidences >= least], len(images)))
                counts = np.bitwise_count(_bitmap(ordinals, len(images)))
                write("ranks", np.cumsum(counts, dtype=np.int32) - counts)
        write("starts", starts)
        write("lengths", [*lengths.values()][:-1])
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for path in (folder, folder.parent):
        _sync_folder(path)


class Changes:
    """Images with their tags as they are now.

    Args:
        images: Numbers of all that changed, in any order, each once.
        rows: Image number, tag id, confidence; each tag of an image once. Shape (n, 3).
    """

    def __init__(self, images: Iterable[int], rows: NDArray[np.int64]) -> None:
        #: Image numbers, ascending.
        self.images = np.array(sorted(images), np.int64)
        #: Those that have tags.
        self.tagged = np.unique(rows[:, 0])
        rows = rows[np.lexsort((rows[:, 0], rows[:, 1]))]
        #: Tag ids are below this.
        self.tags = int(rows[-1, 1]) + 1 if len(rows) else 0
        self._seqs = rows[:, 0]
        self._confidences = rows[:, 2].astype(np.int32)
        self._starts = np.searchsorted(rows[:, 1], np.arange(self.tags + 1)).tolist()

    @classmethod
    def of(cls, postings_of: Mapping[int, Postings]) -> Changes:
        """Return the changes of a `Recent.snapshot`."""
        flat = [(seq, *posting) for seq, postings in postings_of.items() for posting in postings]
        return cls(postings_of, np.array(flat, np.int64).reshape(-1, 3))

    def postings(self, tag: int, images: NDArray[np.int64]) -> tuple[Ints, Ints]:
        """Return the ordinals among *images* of those that carry *tag*, and the confidences."""
        if tag >= self.tags:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        span = slice(self._starts[tag], self._starts[tag + 1])
        return np.searchsorted(images, self._seqs[span]).astype(np.int32), self._confidences[span]


def _images(old: Segment | None, changes: Changes) -> tuple[Ints | None, NDArray[np.int64]]:
    """Return the new ordinals of the old ones, -1 for what is not kept, and all images.

    None stands for ordinals that stay as they are.
    """
    if old is None:
        return None, changes.tagged
    keeps = ~np.isin(old.images, changes.images)
    images = np.union1d(old.images[keeps], changes.tagged)
    if keeps.all() and np.array_equal(images[: len(old)], old.images):
        return None, images
    ordinals = np.searchsorted(images, old.images).astype(np.int32)
    return np.where(keeps, ordinals, np.int32(-1)), images


def _merged(
    tag: int, old: Segment | None, kept: Ints | None, new: tuple[Ints, Ints]
) -> tuple[Ints, Ints]:
    """Return the list of *tag*: what is kept of the old one, and the new postings."""
    if old is None or not old.size(tag):
        return new
    ordinals, confidences = old.ordinals(tag), old.confidences(tag)
    if kept is not None:
        ordinals = kept[ordinals]
        stays = ordinals >= 0
        ordinals, confidences = ordinals[stays], confidences[stays]
    if not len(new[0]):
        return ordinals, confidences
    ordinals = np.concatenate([ordinals, new[0]])
    confidences = np.concatenate([confidences, new[1]])
    if kept is None:  # new images only, and they come last
        return ordinals, confidences
    order = np.argsort(ordinals, kind="stable")
    return ordinals[order], confidences[order]


def _least_of_best(confidences: Ints, share: int) -> int:
    """Return the confidence that one entry in *share* reaches, and at least one does."""
    if share == 1:
        return 0
    cut = len(confidences) - max(1, len(confidences) // share)
    return int(np.partition(confidences, cut)[cut])


def _bitmap(ordinals: Ints, images: int) -> NDArray[np.uint64]:
    flags = np.zeros(words_for(images) * 64, np.bool_)
    flags[ordinals] = True
    return np.packbits(flags, bitorder="little").view(np.uint64)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
