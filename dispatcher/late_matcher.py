"""A matcher that is still to come: its models take a second to load, and not all work needs it.

The one rule: whoever makes one lets it come, or closes it; or threads wait for ever.
"""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispatcher.matcher import Matcher, Matching


class NoMatcherError(Exception):
    """There will be no matcher in this process: it stops before it has one."""


class LateMatcher:
    """Matches like the `Matcher` that comes; until then, whoever asks waits. Thread safe."""

    def __init__(self) -> None:
        self._matcher: Future[Matcher] = Future()

    def match(self, text: str, *, limit: int) -> Matching:
        """Return what *text* matches; see `Matcher.match`.

        Raises:
            NoMatcherError: It will never come. Trying again helps in the next process only.
        """
        try:
            matcher = self._matcher.result()
        except CancelledError:
            msg = "the process stops before its models have been loaded"
            raise NoMatcherError(msg) from None
        return matcher.match(text, limit=limit)

    def come(self, matcher: Matcher) -> None:
        """Let *matcher* answer, from now on."""
        self._matcher.set_result(matcher)

    def has_come(self) -> bool:
        """Tell whether `match` answers at once."""
        return self._matcher.done()

    def close(self) -> None:
        """Let it never come, and send those who wait away; if it has, end what it writes."""
        if not self._matcher.cancel():
            self._matcher.result().close()
