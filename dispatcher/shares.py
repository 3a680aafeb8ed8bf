"""Places that several owners share, none of whom can take them all."""

from __future__ import annotations

from collections import Counter


class Shares:
    """So many places; an owner may take at most *ratio* times those that are free.

    So one owner alone gets ratio / (ratio + 1) of them, and a second one still finds some
    (Choudhury and Hahne, "Dynamic queue length thresholds", 1998). An owner without any gets one
    while there is one. Not safe to use from several threads at once.
    """

    def __init__(self, places: int, *, ratio: float) -> None:
        self._ratio = ratio
        self._taken: Counter[str] = Counter()
        self._all_taken = 0
        #: May be changed at any time; what is taken stays so.
        self.places = places

    @property
    def free(self) -> int:
        """Places that nobody has taken; less than 0 when there are fewer than there were."""
        return self.places - self._all_taken

    def allows(self, owner: str) -> bool:
        """Return whether *owner* may take one more."""
        taken = self._taken.get(owner, 0)
        free = self.free
        return free > 0 and (taken == 0 or taken < self._ratio * free)

    def take(self, owner: str) -> None:
        """Count one more of *owner*'s."""
        self._taken[owner] += 1
        self._all_taken += 1

    def give_back(self, owner: str, count: int = 1) -> None:
        """Count *count* fewer of *owner*'s."""
        self._all_taken -= count
        self._taken[owner] -= count
        if self._taken[owner] <= 0:
            del self._taken[owner]
