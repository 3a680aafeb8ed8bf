"""What can be seen in an image: the port `Tagger`, its outcomes, and what a tag is.

The one rule: a tagger returns an outcome for each image and raises nothing for what a network or
an image can do. Whether to retry is in the type of the outcome, not in its text.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Most characters in the name of a tag.
MAX_NAME_LENGTH = 100

#: The confidence that stands for certainty: confidences count millionths.
CERTAIN = 1_000_000


class TaggerLoadError(Exception):
    """A tagger cannot be set up; only the operator can mend it. The text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One thing that is in an image.

    Attributes:
        name: Canonical, as `canonical` gives it.
        confidence: Millionths, 0 to 1,000,000: integers, so that sums are exact.
    """

    name: str
    confidence: int


@dataclass(frozen=True, slots=True)
class Tagged:
    """The tagger looked at the image.

    Attributes:
        tags: Best first, equals by name. Empty when it sees nothing that it knows: no failure.
        model: Name and version, such as `picback-local/1`.
    """

    tags: tuple[Tag, ...]
    model: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The tagger will never look at this image; asking again gives the same."""

    message: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The tagger cannot look at the image now; nothing is wrong with the image.

    Attributes:
        message: For logs and operators.
        retry_after: Seconds that the tagger asks to be left alone, if it does.
        operator: Time will not help, only the operator: a wrong token, a used-up quota, a missing
            model. All other images would fare the same.
    """

    message: str
    retry_after: float | None = None
    operator: bool = False


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The process that looked at the image ended. Perhaps because of it: it is tried a few times."""

    message: str


#: What becomes of one image.
Outcome: TypeAlias = Tagged | Refused | Unavailable | Interrupted


class Tagger(Protocol):
    """Names what is visible in images. Thread safe."""

    #: Most images for one call of `tag`.
    batch_size: int
    #: Whether `tag` wants previews (`analysis.images.Rendition`) and not the uploaded files.
    reads_previews: bool

    def tag(self, contents: Sequence[bytes], *, timeout: float) -> list[Outcome]:
        """Tag the images whose files are *contents*.

        Args:
            contents: Whole image files or previews, at most `batch_size`.
            timeout: Seconds for the whole call. Images not reached by then are `Unavailable`.

        Returns:
            One outcome for each image, in the same order.
        """
        ...

    def close(self) -> None:
        """Let go of connections and models. No `tag` may follow."""
        ...


def canonical(name: str) -> str:
    """Return *name* as tags are compared: NFKC, lower case, single spaces.

    Raises:
        ValueError: Nothing is left, more than `MAX_NAME_LENGTH` characters are, or *name* has
            control characters or half a surrogate pair. The text is a sentence for the caller.
    """
    if len(name) > 10 * MAX_NAME_LENGTH:  # no need to normalise megabytes
        raise ValueError(_TOO_LONG)
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
        msg = "a tag has control characters or half a surrogate pair"
        raise ValueError(msg)
    # Twice: lowering the dotted capital I and its like takes a character apart.
    lowered = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).lower())
    spaced = " ".join(lowered.split())
    if not spaced:
        msg = "a tag is empty"
        raise ValueError(msg)
    if len(spaced) > MAX_NAME_LENGTH:
        raise ValueError(_TOO_LONG)
    return spaced


_TOO_LONG = f"a tag has more than {MAX_NAME_LENGTH} characters"


def best_first(tags: Iterable[Tag]) -> tuple[Tag, ...]:
    """Sort *tags* as `Tagged` wants them."""
    return tuple(sorted(tags, key=lambda tag: (-tag.confidence, tag.name)))


def millionths(confidence: float) -> int:
    """Round *confidence*, held to 0 to 1, to millionths, halves to even; not a number counts as 0."""
    return round(min(max(0.0, confidence), 1.0) * CERTAIN)
