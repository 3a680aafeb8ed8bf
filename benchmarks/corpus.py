"""A made-up library that is like a real one tagged by Clarifai: 20 tags to each image, or as asked.

What is like: of 10,000 tags the r-th most common one is on a share of 2.75/(r+5) of all images
(46 %, 39 %, 34 % ...; the thousandth on one in 370), and confidences lie between 0.8 and 1, most of
them close to 1. Two more tags, all of confidence 1, are on 40 % of the images each and never on
the same: many images tie for the best, which is the hardest case for any index that stops early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

Numbers: TypeAlias = NDArray[np.int32]

TAGS_PER_IMAGE: Final = 20
VOCABULARY: Final = 10_000
#: The ids of the two tags that are never on the same image.
DISJOINT: Final = (VOCABULARY + 1, VOCABULARY + 2)
TAG_IDS: Final = range(1, VOCABULARY + 3)
#: More draws than tags, because some draws are of the same tag.
_DRAWS_PER_TAG: Final = 2
#: Images made at once: their draws fit the processor's cache, more or less.
_CHUNK: Final = 20_000
_COMMON: Final = range(1, 21)
_RARE: Final = range(3_000, VOCABULARY)
_POOLS: Final = {
    "common": (_COMMON,),
    "rare": (_RARE,),
    "mixed": (_COMMON, range(50, 1_000), _RARE),
    "unknown": (range(1, 1_000), range(VOCABULARY + 10, 2 * VOCABULARY)),
}
KINDS: Final = tuple(_POOLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postings:
    """Rows (image, tag, confidence in millionths), sorted by image, then by tag."""

    images: Numbers
    tags: Numbers
    confidences: Numbers


def postings(
    images: int, *, tags_per_image: int = TAGS_PER_IMAGE, seed: int = 1
) -> Iterator[Postings]:
    """Yield the postings of images 1 to *images*, a part at a time; always the same ones."""
    draws = _DRAWS_PER_TAG * tags_per_image
    rng = np.random.default_rng(seed)
    shares = 2.75 / (np.arange(1, VOCABULARY + 1) + 5)
    cumulated = np.cumsum(_weights(shares))
    for first in range(1, images + 1, _CHUNK):
        count = min(_CHUNK, images + 1 - first)
        drawn = np.searchsorted(cumulated, rng.random((count, draws))).astype(np.int32) + 1
        tags = _first_distinct(drawn.clip(1, VOCABULARY), tags_per_image)
        numbers = np.broadcast_to(
            np.arange(first, first + count, dtype=np.int32)[:, None], tags.shape
        )
        # 1 - confidence: log-normal over images, and growing along an image's tags. Percentiles
        # 1, 10, 50, 90: about 0.81, 0.95, 0.992, 0.999.
        scale = rng.normal(np.log(0.0015), 0.7, (count, 1))
        slope = rng.normal(0.19, 0.03, (count, 1))
        ranks = np.arange(tags_per_image) * (TAGS_PER_IMAGE / tags_per_image)
        places = rng.permuted(np.broadcast_to(ranks, tags.shape), axis=1)
        doubts = np.exp(scale + slope * places)
        confidences = np.rint(1e6 * (1 - doubts).clip(0.8, 0.9999)).astype(np.int32)
        yield _with_disjoint(numbers, tags, confidences, rng)


def sorted_by_tag(parts: Iterator[Postings]) -> Iterator[tuple[int, int, int]]:
    """Yield rows (tag, image, confidence), sorted by tag, then by image."""
    all_parts = list(parts)
    images, tags, confidences = (
        np.concatenate([getattr(part, name) for part in all_parts])
        for name in ("images", "tags", "confidences")
    )
    order = np.argsort(tags, kind="stable")  # by image they are already
    for place in range(0, len(order), _CHUNK * TAGS_PER_IMAGE):
        chunk = order[place : place + _CHUNK * TAGS_PER_IMAGE]
        yield from zip(
            tags[chunk].tolist(), images[chunk].tolist(), confidences[chunk].tolist(), strict=True
        )


def mixed_queries(count: int, *, seed: int = 5) -> list[list[int]]:
    """Return *count* queries of 1 to 10 words, of each length and kind in turn.

    One in 20 asks for the two tags that are never on the same image instead.
    """
    rng = np.random.default_rng(seed)
    return [
        list(DISJOINT)
        if number % 20 == 11
        else query(KINDS[number // 10 % len(KINDS)], number % 10 + 1, rng)
        for number in range(count)
    ]


def query(kind: str, words: int, rng: np.random.Generator) -> list[int]:
    """Return the tag ids of a query of so many *words*, which are all different.

    "common": the 20 most common tags. "rare": tags on fewer than one image in 1,000. "mixed": of
    both, and from between. "unknown": every second word is one that no image has; its id is above
    those of tags.
    """
    chosen: dict[int, None] = {}
    pools = _POOLS[kind]
    while len(chosen) < words:
        pool = pools[len(chosen) % len(pools)]
        chosen[int(rng.integers(pool.start, pool.stop))] = None
    return list(chosen)


def _weights(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how probable each tag is in one draw, so that its share of images comes out right."""
    # An image has some 26 draws until it has 20 different tags; a tag drawn with probability p each
    # time is on it with 1 - (1 - p) ** 26.
    weights = 1 - (1 - shares.clip(0, 0.99)) ** (1 / 26)
    return np.asarray(weights / weights.sum())


def _first_distinct(drawn: Numbers, count: int) -> Numbers:
    """Return the first *count* different tags of each row, sorted; unlikely gaps get rare tags."""
    order = np.argsort(drawn, axis=1, kind="stable")
    ranked = np.take_along_axis(drawn, order, axis=1)
    again = np.zeros(drawn.shape, dtype=bool)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    place = np.where(again, drawn.shape[1], order)
    keep = np.argpartition(place, count - 1, axis=1)[:, :count]
    tags = np.take_along_axis(ranked, keep, axis=1)
    gaps = np.take_along_axis(again, keep, axis=1)
    # From the end of the vocabulary, one for each place, so that none stands twice.
    spare = (VOCABULARY - np.arange(count, dtype=np.int32))[None, :]
    tags = np.where(gaps, np.broadcast_to(spare, tags.shape), tags)
    tags.sort(axis=1)
    repeated = np.zeros(tags.shape, dtype=bool)
    repeated[:, 1:] = tags[:, 1:] == tags[:, :-1]
    tags[repeated] = 0  # one image in millions: it has a tag fewer
    return tags


def _with_disjoint(
    images: Numbers, tags: Numbers, confidences: Numbers, rng: np.random.Generator
) -> Postings:
    count = len(images)
    extra = np.where(images[:, :1] % 2 == 0, DISJOINT[0], DISJOINT[1]).astype(np.int32)
    extra[rng.random((count, 1)) >= 0.8] = 0
    all_tags = np.concatenate([tags, extra], axis=1).ravel()
    all_images = np.concatenate([images, images[:, :1]], axis=1).ravel()
    certain = np.full((count, 1), 1_000_000, dtype=np.int32)
    all_confidences = np.concatenate([confidences, certain], axis=1).ravel()
    real = all_tags > 0
    return Postings(images=all_images[real], tags=all_tags[real], confidences=all_confidences[real])
