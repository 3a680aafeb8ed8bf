"""The words of the local tagger: `models/tags.tsv`, which maps its models' classes to tags.

The one rule: images are tagged with canonical names only, or other words for the same thing would
fill the few tags of an image with clothes, clothing, apparel and garment. The table's column of
synonyms is not read: picback matches words, not meanings.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

    from numpy.typing import NDArray

#: Where the model files are: package data.
MODELS: Traversable = resources.files("analysis.taggers") / "models"

#: Classes of the classifier. Source: ImageNet-1k, as EfficientNet-Lite was trained on it.
IMAGENET_CLASSES = 1000

#: Classes of the detector. Source: COCO 2017.
COCO_CLASSES = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What each tag stands for; row i of both matrices belongs to `names[i]`.

    Attributes:
        names: Canonical tag names.
        imagenet: 1 where a class of ImageNet counts for a tag, else 0; (tags, 1000), float32.
        coco: The same for the classes of COCO; (tags, 80), float32.
    """

    names: tuple[str, ...]
    imagenet: NDArray[np.float32]
    coco: NDArray[np.float32]


def read_vocabulary(table: str) -> Vocabulary:
    """Read the text of `tags.tsv`: name, synonyms, ImageNet classes, COCO classes; tab between."""
    rows = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
    imagenet = np.zeros((len(rows), IMAGENET_CLASSES), np.float32)
    coco = np.zeros((len(rows), COCO_CLASSES), np.float32)
    for row, (_, _, imagenet_classes, coco_classes) in enumerate(rows):
        imagenet[row, list(_classes(imagenet_classes))] = 1
        coco[row, list(_classes(coco_classes))] = 1
    return Vocabulary(
        names=tuple(name for name, *_ in rows),
        imagenet=imagenet,
        coco=coco,
    )


def _classes(ranges: str) -> Iterator[int]:
    """Yield the numbers of `404-405,417`."""
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
