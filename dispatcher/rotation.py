"""Who is next: API keys in turn, and each key's flows in turn. No time, no storage, no threads.

A flow is what one key has queued for one destination, first attempts or retries. Every operation
takes a time that does not depend on the number of flows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

F = TypeVar("F")

_FEW: Final = 8


@dataclass(slots=True)
class _Flows(Generic[F]):
    """One key's flows, each with the number of the turn when it came, or had its last one.

    Those that are new need not wait a round, but nor must the others wait for ever more new ones:
    of those that were there before them one has every other turn.
    """

    new: OrderedDict[F, int] = field(default_factory=OrderedDict)
    served: OrderedDict[F, int] = field(default_factory=OrderedDict)
    new_first: bool = True

    def first(self) -> F:
        if not self.new or not self.served:
            return next(iter(self.new or self.served))
        (new, came), (served, had) = next(iter(self.new.items())), next(iter(self.served.items()))
        return new if self.new_first or had >= came else served


class Turns:
    """When each key had its last turn, over several rotations. Keys are few: none is forgotten."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._count = 0

    @property
    def number(self) -> int:
        """How many turns there were."""
        return self._count

    def last(self, key: str) -> int:
        """Return the number of *key*'s last turn; 0: none yet."""
        return self._last.get(key, 0)

    def count(self, key: str) -> None:
        """Note that *key* has a turn now."""
        self._count += 1
        self._last[key] = self._count


class Rotation(Generic[F]):
    """Flows that may have a turn, those of keys that had none for longest first."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._keys: OrderedDict[str, _Flows[F]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(flows.new) + len(flows.served) for flows in self._keys.values())

    def add(self, key: str, flow: F, *, was_served: bool) -> None:
        """Let *flow* of *key* wait for a turn. *was_served*: it had one since it last was empty."""
        flows = self._keys.get(key)
        if flows is None:
            is_older = self._keys and self._turns.last(key) < self._turns.last(
                next(iter(self._keys))
            )
            flows = self._keys[key] = _Flows()
            if is_older:
                self._keys.move_to_end(key, last=False)
        (flows.served if was_served else flows.new)[flow] = self._turns.number

    def discard(self, key: str, flow: F) -> None:
        """Let *flow* no longer wait."""
        flows = self._keys[key]
        flows.new.pop(flow, None)
        flows.served.pop(flow, None)
        if not flows.new and not flows.served:
            del self._keys[key]

    def keys_in_turn(self) -> Iterator[str]:
        """Yield the keys in their order. Discarding is allowed meanwhile."""
        yield from list(islice(self._keys, _FEW))  # as a rule one of them may have a turn
        yield from list(islice(self._keys, _FEW, None))

    def first(self, key: str) -> F | None:
        """Return the flow of *key* that is next; None if it has none."""
        flows = self._keys.get(key)
        return flows.first() if flows else None

    def served(self, key: str, flow: F) -> None:
        """Note that *flow* has a turn now: others of its key go first, and other keys."""
        flows = self._keys[key]
        flows.new_first = flow not in flows.new
        flows.new.pop(flow, None)
        flows.served.pop(flow, None)
        flows.served[flow] = self._turns.number

    def passed(self, key: str) -> None:
        """Note that *key* has a turn, perhaps in another rotation."""
        if key in self._keys:
            self._keys.move_to_end(key)
