"""The images of a segment with the highest sums, without looking at most of them.

What is skipped is proved to be worse, so the answer is that of looking at everything. In short:
the heads of the lists give good images at once, and with them a floor that an image has to reach.
Then the lists are walked, the shortest first, until what the remaining ones can add up to is below
the floor (MaxScore: Turtle and Flood, 1995). What remains are common tags, whose confidences are
all near 1, so that the *number* of tags nearly decides: bitmaps are added up bit by bit, and only
images with enough tags are scored (Rinfret, O'Neil and O'Neil, SIGMOD 2001).
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from dispatcher.index.segment import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from dispatcher.index.segment import Ints, Segment, Words

#: Best entries of all lists that are scored to begin with: more raise the floor little.
_SEEDS: Final = 256
#: It takes longer to see which of so few cannot reach the floor than to look them all up.
_FEW: Final = 16
#: With so many lists nothing can be skipped.
_MANY_LISTS: Final = 32
#: So many confidences of 1,000,000 add up to less than 2 ** 31.
_MOST_IN_INT32: Final = 2_000
#: What it costs to look an image up in a bitmap, and to look at one of all images, in terms of
#: adding one posting to a sum (2 ns). Source: measured.
_LOOK_UP: Final = 8
_PER_IMAGE: Final = 0.25


class Search:
    """Searches one segment, but for images that it is told to hide. For one thread at a time."""

    def __init__(self, segment: Segment) -> None:
        #: What is searched.
        self.segment = segment
        self._sums = np.zeros(len(segment), np.int32)
        #: By ordinal; None: no image is hidden.
        self._hidden: NDArray[np.bool_] | None = None

    def hide(self, seq: int) -> None:
        """Pass over image number *seq* from now on, if it is here."""
        ordinal = self.segment.ordinal(seq)
        if ordinal is not None:
            if self._hidden is None:
                self._hidden = np.zeros(len(self.segment), np.bool_)
            self._hidden[ordinal] = True

    def best(self, tags: Iterable[int], limit: int) -> list[tuple[int, int]]:
        """Return (sum of confidences, image number) of the best images, best first.

        Args:
            tags: Ids, each once.
            limit: At least 1; fast up to `HEAD`.
        """
        segment = self.segment
        lists = sorted((tag for tag in tags if segment.size(tag)), key=segment.size)
        if not lists:
            return []
        if len(lists) > _MOST_IN_INT32:
            self._sums = self._sums.astype(np.int64)
        ranking = _Ranking(limit)
        if (
            len(lists) > _MANY_LISTS
            or not self._begin_with_heads(lists, ranking)
            or not self._go_on(lists, ranking)
        ):
            self._add_up(lists, ranking)
        sums, ordinals = ranking.entries()
        return list(zip(sums.tolist(), segment.images[ordinals].tolist(), strict=True))

    def confidences(self, seq: int, tags: Iterable[int]) -> dict[int, int]:
        """Return tag -> confidence, for those of *tags* that image number *seq* carries."""
        ordinal = self.segment.ordinal(seq)
        if ordinal is None:
            return {}
        found = ((tag, self.segment.confidence(tag, ordinal)) for tag in tags)
        return {tag: confidence for tag, confidence in found if confidence}

    def _begin_with_heads(self, lists: Sequence[int], ranking: _Ranking) -> bool:
        """Rank the best of each list; tell whether that does for images with a single tag."""
        segment = self.segment
        seeds = []
        for tag in lists:
            head = self._visible(segment.ordinals(tag)[segment.head(tag)])
            if len(head) < ranking.limit and segment.size(tag) > HEAD:
                return False  # too many of its best are hidden
            seeds.append(head[: max(ranking.limit, _SEEDS // len(lists))])
        ordinals = np.unique(np.concatenate(seeds))
        self._score(ordinals, np.zeros(len(ordinals), np.int32), lists, ranking)
        return True

    def _go_on(self, lists: Sequence[int], ranking: _Ranking) -> bool:
        """Rank every image that may yet be among the best; return False if that costs too much."""
        segment = self.segment
        highest = [int(segment.confidences(tag)[segment.head(tag)[0]]) for tag in lists]
        at_most = _sums_from_each(highest)
        patience = sum(map(segment.size, lists)) + _PER_IMAGE * len(segment)
        rare = [tag for tag in lists if not segment.is_common(tag)]  # the first ones: the shortest
        common = lists[len(rare) :]
        at_most_common = sum(highest[len(rare) :])
        with self._added_up(rare):
            for number, tag in enumerate(rare):
                if at_most[number] < ranking.floor or tag == lists[-1]:
                    return True  # images with the last tag only: the head of its list will do
                ordinals = self._visible(segment.ordinals(tag))
                sums = self._sums[ordinals]
                able = sums + at_most_common >= ranking.floor
                ordinals, sums = ordinals[able], sums[able]
                patience -= len(ordinals) * len(common) * _LOOK_UP
                if patience < 0:
                    return False
                self._score(ordinals, sums, common, ranking, at_most[len(rare) :])
        return self._go_by_counts(common, highest[len(rare) :], ranking, patience)

    def _go_by_counts(
        self, lists: Sequence[int], highest: Sequence[int], ranking: _Ranking, patience: float
    ) -> bool:
        """Rank the images that carry common tags only: first those with all, then with all but one.

        Those that carry a rarer tag as well turn up again, with a lower sum than they were ranked
        with, or below the floor as before. Returns False if it costs too much.
        """
        if len(lists) < 2:
            return True  # images with a single tag: the head of its list has dealt with them
        segment = self.segment
        with_most = list(accumulate(sorted(highest, reverse=True)))
        at_most = _sums_from_each(highest)
        for number, count in enumerate((len(lists), *range(len(lists), 1, -1))):
            if with_most[count - 1] < ranking.floor:
                break
            # What no other tags can make up for; before that, for a higher floor, the very best.
            needed = ranking.floor - with_most[count - 2] if number else with_most[0]
            bitmaps = [segment.bits(tag, needed) for tag in lists]
            words = _in_all(bitmaps) if count == len(lists) else _in_some(bitmaps, count)
            patience -= int(np.bitwise_count(words).sum()) * len(lists) * _LOOK_UP
            if patience < 0:
                return False
            ordinals = self._visible(_ordinals_in(words))
            self._score(ordinals, np.zeros(len(ordinals), np.int32), lists, ranking, at_most)
        return True

    def _score(
        self,
        ordinals: Ints,
        sums: Ints,
        lists: Sequence[int],
        ranking: _Ranking,
        at_most: Sequence[int] = (),
    ) -> None:
        """Add to *sums* what *lists* give, and rank; drop on the way who cannot reach the floor.

        Args:
            ordinals: Ascending.
            sums: What each has from other lists.
            lists: Tags.
            ranking: To be added to.
            at_most: What each of *lists* and those after it can give; empty: drop nobody.
        """
        for number, tag in enumerate(lists):
            if at_most and len(ordinals) > _FEW:
                able = sums + at_most[number] >= ranking.floor
                if not able.all():
                    ordinals, sums = ordinals[able], sums[able]
            if not len(ordinals):
                return
            sums = sums + self.segment.look_up(tag, ordinals)
        ranking.add(ordinals, sums)

    def _add_up(self, lists: Sequence[int], ranking: _Ranking) -> None:
        """Rank all images: the plain way, whose cost has a limit."""
        with self._added_up(lists):
            if self._hidden is not None:
                self._sums[self._hidden] = 0
            if ranking.limit == 1:
                ordinals = np.array([self._sums.argmax()])  # of equal ones the first
            else:
                ordinals = np.flatnonzero(self._sums >= max(ranking.floor, 1))
            ranking.add(ordinals, self._sums[ordinals])

    @contextmanager
    def _added_up(self, lists: Sequence[int]) -> Iterator[None]:
        """Have the confidences of *lists* in the sums, for a while."""
        segment = self.segment
        try:
            for tag in lists:
                np.add.at(self._sums, segment.ordinals(tag), segment.confidences(tag))
            yield
        finally:
            if sum(map(segment.size, lists)) > len(segment) // 8:
                self._sums[:] = 0
            else:
                for tag in lists:
                    self._sums[segment.ordinals(tag)] = 0

    def _visible(self, ordinals: Ints) -> Ints:
        return ordinals if self._hidden is None else ordinals[~self._hidden[ordinals]]


class _Ranking:
    """The best images met so far."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: An image with a lower sum is not among the best.
        self.floor = 0
        self._ordinals: Ints = np.empty(0, np.int32)
        self._sums: Ints = np.empty(0, np.int32)

    def add(self, ordinals: Ints, sums: Ints) -> None:
        """Take in images: *ordinals* ascending, each once; of two sums of an image the higher."""
        reach = max(self.floor, 1)
        if len(sums) > self.limit:
            cut = len(sums) - self.limit
            reach = max(reach, int(np.partition(sums, cut)[cut]))
        above = np.flatnonzero(sums > reach)
        equal = np.flatnonzero(sums == reach)[: self.limit]
        ordinals = np.concatenate([self._ordinals, ordinals[above], ordinals[equal]])
        sums = np.concatenate([self._sums, sums[above], sums[equal]])
        order = np.lexsort((ordinals, -sums))
        _, first = np.unique(ordinals[order], return_index=True)
        order = order[np.sort(first)[: self.limit]]
        self._ordinals, self._sums = ordinals[order], sums[order]
        if len(order) == self.limit:
            self.floor = int(self._sums[-1])

    def entries(self) -> tuple[Ints, Ints]:
        """Return sums and ordinals, best first."""
        return self._sums, self._ordinals


def _sums_from_each(values: Sequence[int]) -> list[int]:
    """Return for each value the sum of it and all after it."""
    return list(accumulate(reversed(values)))[::-1]


def _in_all(bitmaps: Sequence[Words]) -> Words:
    words = bitmaps[0]
    for bitmap in bitmaps[1:]:
        words = words & bitmap
    return words


def _in_some(bitmaps: Sequence[Words], count: int) -> Words:
    """Return the bits that exactly *count* of *bitmaps* have: all 64 of a word at once."""
    planes = [bitmaps[0]]  # how many have each bit, as binary digits: of 1, 2, 4, ...
    for seen, bitmap in enumerate(bitmaps[1:], 2):
        carry = bitmap
        for number, plane in enumerate(planes):
            planes[number], carry = plane ^ carry, plane & carry
        if seen.bit_length() > len(planes):
            planes.append(carry)
    words = ~np.zeros_like(planes[0])
    for number, plane in enumerate(planes):
        words &= plane if count >> number & 1 else ~plane
    return words


def _ordinals_in(words: Words) -> Ints:
    filled = np.flatnonzero(words)
    bits = np.unpackbits(words[filled].view(np.uint8), bitorder="little").reshape(-1, 64)
    row, bit = np.nonzero(bits)
    return ((filled[row] << 6) + bit).astype(np.int32)
