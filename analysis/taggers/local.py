"""The tagger that needs no account and no network: two small neural networks on the CPU.

A classifier knows 1,000 fine-grained things, a detector 80 everyday ones, above all people, whom
ImageNet lacks. Their classes are grouped into tags, and the two opinions on a tag are fused. What
that is worth, and where it fails, is in `docs/tagging.md`.

Runs in a child process: see `local_process`.

Invariant: whatever changes a tag of any image raises the version in `MODEL`.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from analysis.images import PictureError
from analysis.pictures import PictureReader
from analysis.taggers import (
    Refused,
    Tag,
    Tagged,
    TaggerLoadError,
    Unavailable,
    best_first,
    millionths,
)
from analysis.taggers.networks import Classifier, Detector
from analysis.taggers.vocabulary import MODELS, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.resources.abc import Traversable

    import numpy as np
    from numpy.typing import NDArray

    from analysis.taggers import Outcome

#: Name and version of models, vocabulary and arithmetic together.
MODEL = "picback-local/2"

_CLASSIFIER = "efficientnet-lite0.int8w.onnx"
_DETECTOR = "nanodet-g.int8w.onnx"
_TAGS = "tags.tsv"

# COCO knows ten animals and takes all others for one of them (a koala for a bird). So an animal
# that the detector sees counts only if the classifier, which knows 398, is not sure of another.
# The giraffe is missing because ImageNet has none.
_COCO_ANIMALS = {
    14: "bird",
    15: "cat",
    16: "dog",
    17: "horse",
    18: "sheep",
    19: "cow",
    20: "elephant",
    21: "bear",
    22: "zebra",
}
_SURE_OF_AN_ANIMAL = 0.5
_NOT_THIS_ONE = 0.02


class LocalTagger:
    """Tags images with the models that ship with picback. Thread safe; opens no connection.

    One image takes about 0.1 s of one core.
    """

    #: One: images are looked at one after the other anyway, so each result is given back at once.
    batch_size = 1
    reads_previews = True

    def __init__(
        self,
        models: Traversable = MODELS,
        *,
        min_confidence: float = 0.25,
        max_tags: int = 20,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check and load the models.

        Args:
            models: The folder of the model files and the `MANIFEST` of their hashes.
            min_confidence: Tags below, 0 to 1, are left out. At 0.25, on 128 photos of everyday
                scenes, 71 % of what was there was found, and 62 % of what was found was there.
            max_tags: Most tags per image, the best ones.
            threads: Cores that one image may use.
            clock: Seconds, monotonic.

        Raises:
            TaggerLoadError: A file is missing, altered, or no model.
        """
        files = _verified(models)
        self._vocabulary = read_vocabulary(files[_TAGS].decode())
        self._classifier = Classifier(files[_CLASSIFIER], threads=threads)
        self._detector = Detector(files[_DETECTOR], threads=threads)
        self._min_confidence = millionths(min_confidence)
        self._max_tags = max_tags
        self._reader = PictureReader()
        self._clock = clock
        self._rows = {name: row for row, name in enumerate(self._vocabulary.names)}
        # What a tag gets of a guess that knows nothing: its share of all classes.
        self._by_chance = self._vocabulary.imagenet.mean(axis=1)

    def tag(self, contents: Sequence[bytes], *, timeout: float) -> list[Outcome]:
        """Tag images as `Tagger.tag`; *timeout* is looked at between images, not within one."""
        deadline = self._clock() + timeout
        return [
            self._tag(content)
            if self._clock() < deadline
            else Unavailable("no time was left for this image")
            for content in contents
        ]

    def close(self) -> None:
        """Do nothing: the models go with the object."""

    def _tag(self, content: bytes) -> Outcome:
        try:
            rgb = self._reader.preview(content)
        except PictureError as error:
            return Refused(str(error))
        classes = self._classifier.probabilities(rgb)
        objects = self._detector.probabilities(rgb)
        confidences = map(millionths, self._fused(classes, objects).tolist())
        tags = best_first(
            Tag(name, confidence)
            for name, confidence in zip(self._vocabulary.names, confidences, strict=True)
            if confidence >= self._min_confidence
        )
        return Tagged(tags[: self._max_tags], MODEL)

    def _fused(
        self, classes: NDArray[np.float32], objects: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the confidence in each tag, (tags,), each 0 to 1.

        Args:
            classes: Probability of each ImageNet class, (1000,), sum 1.
            objects: Probability that each COCO class is there, (80,).
        """
        mass = self._vocabulary.imagenet @ classes
        # Corrected for chance, or a picture of nothing would be an animal with 0.4: 398 of the
        # 1,000 classes are animals.
        by_class = ((mass - self._by_chance) / (1 - self._by_chance)).clip(0, 1)
        believed = objects.copy()
        if mass[self._rows["animal"]] >= _SURE_OF_AN_ANIMAL:
            for coco_class, name in _COCO_ANIMALS.items():
                if mass[self._rows[name]] < _NOT_THIS_ONE:
                    believed[coco_class] = 0
        by_object = (self._vocabulary.coco * believed).max(axis=1)
        fused: NDArray[np.float32] = 1 - (1 - by_class) * (1 - by_object)
        return fused


def _verified(models: Traversable) -> dict[str, bytes]:
    """Return the model files by name, after comparing them with the manifest."""
    try:
        lines = (models / "MANIFEST").read_text(encoding="ascii").splitlines()
        files = {name: (models / name).read_bytes() for name in (_CLASSIFIER, _DETECTOR, _TAGS)}
    except (OSError, ValueError) as error:
        msg = f"the local tagger's model files cannot be read: {error}"
        raise TaggerLoadError(msg) from error
    for name, content in files.items():
        if f"{hashlib.sha256(content).hexdigest()}  {name}" not in lines:
            msg = f"{models / name} is not the file that MANIFEST lists; install picback anew"
            raise TaggerLoadError(msg)
    return files
