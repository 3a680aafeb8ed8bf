"""The local tagger, with the model files that ship."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.taggers import Refused, Tagged, TaggerLoadError, Unavailable, canonical
from analysis.taggers.local import MODEL, LocalTagger
from analysis.taggers.vocabulary import MODELS, read_vocabulary

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
TIMEOUT = 60.0
Fused = dict[str, float]


@pytest.fixture(scope="module")
def tagger() -> LocalTagger:
    return LocalTagger()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A copy of the model files that a test may spoil."""
    with resources.as_file(MODELS) as shipped:
        return Path(shutil.copytree(shipped, tmp_path / "models"))


def photo(name: str) -> bytes:
    return (PHOTOS / name).read_bytes()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def seen(tagger: LocalTagger, content: bytes) -> dict[str, float]:
    (outcome,) = tagger.tag([content], timeout=TIMEOUT)
    assert isinstance(outcome, Tagged)
    return {tag.name: tag.confidence / 1_000_000 for tag in outcome.tags}


# What the shipped models say. Other CPUs compute in another order: a difference in the third digit
# would already be a different model.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coffee.jpg", {"food": 0.981, "drink": 0.967, "coffee": 0.954, "espresso": 0.951}),
        ("panda.jpg", {"mammal": 0.977, "animal": 0.977, "wildlife": 0.975, "giant panda": 0.971}),
        ("otter.jpg", {"animal": 0.989, "mammal": 0.989, "otter": 0.961}),
        ("astronaut.jpg", {"person": 0.975}),
    ],
)
def test_the_best_tags_of_a_photo_are_these(
    tagger: LocalTagger, name: str, expected: dict[str, float]
) -> None:
    tags = seen(tagger, photo(name))

    best = dict(list(tags.items())[: len(expected)])
    assert list(expected) == list(best)
    assert pytest.approx(expected, abs=0.001) == best


def test_tags_are_canonical_stand_best_first_and_name_their_model(tagger: LocalTagger) -> None:
    (outcome,) = tagger.tag([photo("cat.png")], timeout=TIMEOUT)

    assert isinstance(outcome, Tagged)
    assert MODEL == outcome.model
    assert sorted(outcome.tags, key=lambda tag: (-tag.confidence, tag.name)) == list(outcome.tags)
    assert [canonical(tag.name) for tag in outcome.tags] == [tag.name for tag in outcome.tags]
    assert 1_000_000 >= outcome.tags[0].confidence >= outcome.tags[-1].confidence >= 250_000


def test_a_photo_says_the_same_in_every_position(tagger: LocalTagger) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(photo("panda.jpg")))
    lying = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(lying, "PNG", exif=exif)

    assert seen(tagger, png(image)) == seen(tagger, lying.getvalue())


def test_a_large_jpeg_says_what_the_same_picture_as_png_says(tagger: LocalTagger) -> None:
    # The JPEG is decoded at a quarter of its size, the PNG at full size.
    image = Image.open(io.BytesIO(photo("panda.jpg"))).resize((4096, 3400))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=95)

    whole, reduced = seen(tagger, png(image)), seen(tagger, jpeg.getvalue())

    assert pytest.approx(whole, abs=0.01) == reduced


def test_a_picture_of_nothing_has_no_tags_and_that_is_no_failure(tagger: LocalTagger) -> None:
    outcomes = tagger.tag([png(Image.new("RGB", (64, 64), "white"))], timeout=TIMEOUT)

    assert [Tagged((), MODEL)] == outcomes


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3)])
def test_a_picture_of_any_shape_is_looked_at(tagger: LocalTagger, size: tuple[int, int]) -> None:
    (outcome,) = tagger.tag([png(Image.new("L", size))], timeout=TIMEOUT)

    assert isinstance(outcome, Tagged)


def test_what_is_no_picture_is_refused_and_its_neighbours_are_not(tagger: LocalTagger) -> None:
    good = photo("otter.jpg")

    first, text, cut, last = tagger.tag([good, b"text", good[:5000], good], timeout=TIMEOUT)

    assert isinstance(first, Tagged)
    assert first == last
    assert isinstance(text, Refused)
    assert "not of a supported type" in text.message
    assert isinstance(cut, Refused)
    assert "truncated" in cut.message


def test_no_pictures_have_no_outcomes(tagger: LocalTagger) -> None:
    assert [] == tagger.tag([], timeout=TIMEOUT)


def test_pictures_that_the_timeout_leaves_out_are_unavailable() -> None:
    now = iter([0.0, 0.0, 9.9, 10.0])
    tagger = LocalTagger(clock=lambda: next(now))

    outcomes = tagger.tag([b"", b"", b""], timeout=10.0)

    assert [Refused, Refused, Unavailable] == [type(outcome) for outcome in outcomes]


def test_limits_of_number_and_confidence_are_kept() -> None:
    tagger = LocalTagger(min_confidence=0.96, max_tags=2)

    assert ["animal", "mammal"] == sorted(seen(tagger, photo("otter.jpg")))
    assert ["food", "drink"] == list(seen(tagger, photo("coffee.jpg")))


def test_threads_share_a_tagger(tagger: LocalTagger) -> None:
    names = ["otter.jpg", "panda.jpg", "coffee.jpg", "astronaut.jpg"]
    alone = {name: seen(tagger, photo(name)) for name in names}
    together: dict[str, dict[str, float]] = {}

    def tag(name: str) -> None:
        together[name] = seen(tagger, photo(name))

    threads = [threading.Thread(target=tag, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert alone == together


@pytest.mark.parametrize(
    "file", ["efficientnet-lite0.int8w.onnx", "nanodet-g.int8w.onnx", "tags.tsv"]
)
def test_an_altered_file_is_not_loaded(models: Path, file: str) -> None:
    content = bytearray((models / file).read_bytes())
    content[1000] ^= 1
    (models / file).write_bytes(content)

    with pytest.raises(TaggerLoadError, match=f"{file} is not the file that MANIFEST lists"):
        LocalTagger(models)


@pytest.mark.parametrize("file", ["MANIFEST", "nanodet-g.int8w.onnx", "tags.tsv"])
def test_a_missing_file_is_named(models: Path, file: str) -> None:
    (models / file).unlink()

    with pytest.raises(TaggerLoadError, match=f"cannot be read.*{file}"):
        LocalTagger(models)


def test_a_file_that_is_listed_but_no_model_is_refused(models: Path) -> None:
    name = "nanodet-g.int8w.onnx"
    (models / name).write_bytes(b"not a model")
    manifest = (models / "MANIFEST").read_text().splitlines()
    others = [line for line in manifest if not line.endswith(name)]
    listed = f"{hashlib.sha256(b'not a model').hexdigest()}  {name}"
    (models / "MANIFEST").write_text("\n".join([*others, listed]))

    with pytest.raises(TaggerLoadError, match="cannot load a model"):
        LocalTagger(models)


def test_tagging_opens_no_connection() -> None:
    # In a process of its own, in which every socket is an error.
    program = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise SystemExit('a socket')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from analysis.taggers.local import LocalTagger\n"
        "print(LocalTagger().tag([sys.stdin.buffer.read()], timeout=60)[0].tags[0].name)\n"
    )

    process = subprocess.run(
        [sys.executable, "-c", program],
        input=photo("coffee.jpg"),
        capture_output=True,
        check=True,
    )

    assert b"food\n" == process.stdout


KOALA, ROBIN, BIRD, PERSON = 105, 15, 14, 0  # the first two of ImageNet, the others of COCO


def fused(tagger: LocalTagger, classes: dict[int, float], objects: dict[int, float]) -> Fused:
    """Fuse the opinions of networks that are sure of *classes* and *objects*, of nothing else."""
    probabilities = np.zeros(1000, np.float32)
    detections = np.zeros(80, np.float32)
    for index, probability in classes.items():
        probabilities[index] = probability
    for index, probability in objects.items():
        detections[index] = probability
    scores = tagger._fused(probabilities, detections)
    return dict(zip(tagger._vocabulary.names, scores.tolist(), strict=True))


def test_a_classifier_that_knows_nothing_tags_nothing(tagger: LocalTagger) -> None:
    tags = fused(tagger, dict.fromkeys(range(1000), 0.001), {})

    assert pytest.approx(0, abs=1e-6) == max(tags.values())


def test_a_tag_is_worth_what_it_is_above_chance(tagger: LocalTagger) -> None:
    tags = fused(tagger, {KOALA: 0.5}, {})

    # 398 of 1,000 classes are animals, one is the koala.
    assert pytest.approx((0.5 - 0.398) / (1 - 0.398)) == tags["animal"]
    assert pytest.approx((0.5 - 0.001) / (1 - 0.001)) == tags["koala"]


def test_what_both_networks_see_counts_more_than_what_one_sees(tagger: LocalTagger) -> None:
    by_class = fused(tagger, {ROBIN: 0.5}, {})["bird"]
    both = fused(tagger, {ROBIN: 0.5}, {BIRD: 0.5})["bird"]

    assert pytest.approx(1 - (1 - by_class) * 0.5) == both


def test_an_animal_of_the_detector_yields_to_another_of_the_classifier(tagger: LocalTagger) -> None:
    unsure = fused(tagger, {KOALA: 0.49}, {BIRD: 0.9, PERSON: 0.9})
    sure = fused(tagger, {KOALA: 0.9}, {BIRD: 0.9, PERSON: 0.9})
    sure_of_both = fused(tagger, {KOALA: 0.9, ROBIN: 0.05}, {BIRD: 0.9})

    assert pytest.approx(0.9, abs=0.05) == unsure["bird"]
    assert 0 == sure["bird"]
    assert pytest.approx(0.9, abs=0.05) == sure["person"]  # a person may hold the koala
    assert pytest.approx(0.9, abs=0.05) == sure_of_both["bird"]


def test_every_name_of_the_vocabulary_is_canonical_and_stands_there_once() -> None:
    names = read_vocabulary((MODELS / "tags.tsv").read_text(encoding="utf-8")).names

    assert [canonical(name) for name in names] == list(names)
    assert len(set(names)) == len(names)


def test_every_tag_stands_for_some_class_of_a_model() -> None:
    vocabulary = read_vocabulary((MODELS / "tags.tsv").read_text(encoding="utf-8"))

    classes = vocabulary.imagenet.sum(axis=1) + vocabulary.coco.sum(axis=1)

    assert (1361, 1000) == vocabulary.imagenet.shape
    assert (1361, 80) == vocabulary.coco.shape
    assert classes.min() >= 1


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [("", []), ("7", [7]), ("0-2", [0, 1, 2]), ("3,5-6,79", [3, 5, 6, 79])],
)
def test_classes_are_read_from_ranges(ranges: str, expected: list[int]) -> None:
    vocabulary = read_vocabulary(f"#tag\tsynonyms\timagenet1k\tcoco80\nword\t\t\t{ranges}\n")

    assert expected == vocabulary.coco[0].nonzero()[0].tolist()
