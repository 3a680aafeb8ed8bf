"""How the dispatcher works, in one value that refuses what cannot work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherSettings:
    """Sizes and times of the dispatcher. Times are in seconds."""

    #: Threads that match and call back: the most callbacks under way at once.
    delivery_threads: int = 64
    #: Most bytes of base64 in all callbacks under way together. Ten of the largest images that
    #: Clarifai takes (27 MB each), or a small one for each thread many times over.
    delivery_bytes: int = 256_000_000
    #: Threads that ask the tagger.
    tagging_threads: int = 2
    #: How long one call of the tagger may take.
    tagger_timeout: float = 30.0
    #: First and longest pause after the tagger was out of reach; doubles in between.
    tagger_pause: tuple[float, float] = (1.0, 60.0)
    #: The same after an answer that only the operator can mend, such as a wrong token.
    tagger_operator_pause: tuple[float, float] = (60.0, 600.0)
    #: An image that has waited this long for a tagger out of reach is FAILED. Counts from when
    #: the operator last had to act, if that was later than the upload.
    tagging_give_up_after: float = 24 * 3600.0

    #: An image whose tagging was interrupted so often is FAILED: the process at work on it ended.
    #: Attempts that a stop of the server ends do not count.
    max_interruptions: int = 5

    def __post_init__(self) -> None:
        for name in ("delivery_threads", "delivery_bytes", "tagging_threads", "max_interruptions"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, not {getattr(self, name)}"
                raise ValueError(msg)
