"""Fakes that work: they implement the port they stand for, and can be looked into."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from analysis.lemmas import Term
from analysis.pictures import PictureReader
from analysis.taggers import Tag, Tagged
from dispatcher.deliverer import Answered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from analysis.images import DecodedImage
    from analysis.taggers import Outcome
    from dispatcher.deliverer import Outcome as DeliveryOutcome

#: 2026-11-22T10:00:00Z, in milliseconds since the epoch.
START = 1_795_341_600_000


class FakeClock:
    """A wall clock in milliseconds that moves only when told to."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += round(seconds * 1000)


class FakeLemmatizer:
    """Takes every word between white space for its own lemma; remembers whose keys it computed."""

    def __init__(self, name: str = "fake 1") -> None:
        self.name = name
        self.keyed: list[str] = []

    def terms(self, text: str) -> list[Term]:
        """Return the words of *text*."""
        return [Term(word, (word,)) for word in text.split()]

    def keys_of_all(self, tags: Sequence[str]) -> list[tuple[str, ...]]:
        """Return one key for each tag: its words."""
        self.keyed += tags
        return [(" ".join(tag.split()),) for tag in tags]


class FakeTagger:
    """Answers what it is told to, by image bytes; remembers what it was asked."""

    batch_size = 4
    reads_previews = False

    def __init__(self, answer: Callable[[bytes], Outcome] | None = None) -> None:
        self.answer = answer or (
            lambda _: Tagged(tags=(Tag(name="dog", confidence=900_000),), model="fake/1")
        )
        self.asked: list[list[bytes]] = []
        self.timeouts: list[float] = []
        self._lock = threading.Lock()

    def tag(self, contents: Sequence[bytes], *, timeout: float) -> list[Outcome]:
        """Answer for each image, in order."""
        with self._lock:
            self.asked.append(list(contents))
            self.timeouts.append(timeout)
        return [self.answer(content) for content in contents]

    def close(self) -> None:
        """Nothing to free."""


class FakeDecoder:
    """Decodes without a process of its own; raises *error* if there is one."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def decode(self, content: bytes, **_: object) -> DecodedImage:
        """Decode *content*, whoever asks."""
        if self.error is not None:
            raise self.error
        return PictureReader().decode(content)


class FakeDeliverer:
    """Gives scripted outcomes, then 204; remembers what it was asked to send."""

    def __init__(self, *outcomes: DeliveryOutcome) -> None:
        self.outcomes = list(outcomes)
        self.sent: list[tuple[str, dict[str, str], bytes]] = []
        #: Owner and timeout of each.
        self.asked_by: list[tuple[str, float | None]] = []
        self._lock = threading.Lock()

    def deliver(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Sequence[bytes],
        owner: str = "",
        timeout: float | None = None,
    ) -> DeliveryOutcome:
        """Take the request down, and answer."""
        with self._lock:
            self.sent.append((url, dict(headers), b"".join(body)))
            self.asked_by.append((owner, timeout))
            if self.outcomes:
                return self.outcomes.pop(0)
        return Answered(status=204, retry_after=None, excerpt=b"", gone=False)

    def close(self) -> None:
        """Nothing to free."""
