"""Which image a text means, against a search that looks at every tag of every image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.lemmas import LONGEST_PHRASE
from storage.database import Database
from tests.dispatcher.matching import matcher_of
from tests.fakes import START
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatcher.matcher import Matcher

WORDS = ("a", "b", "c")
TAGS = ("a", "b", "c", "a b", "b a", "b c", "a a", "a b c", "c a b a c", "b a c a b a", "z")

#: Few values, so that sums tie.
confidences = st.sampled_from([1, 400_000, 500_000, 999_999, 1_000_000])
some_tags = st.dictionaries(st.sampled_from(TAGS), confidences, max_size=4)
texts = st.lists(st.sampled_from((*WORDS, "d")), max_size=8).map(" ".join)


@dataclass
class Pictured:
    """An image as the test has it."""

    id: str
    seq: int
    caller: dict[str, int] = field(default_factory=dict)
    model: dict[str, int] = field(default_factory=dict)

    def effective(self) -> dict[str, int]:
        return {tag: value for tag, value in {**self.model, **self.caller}.items() if value}


def brute_force(
    library: Sequence[Pictured], text: str, limit: int
) -> list[tuple[str, int, list[tuple[str, str, int]]]]:
    """Look at every tag of every image."""
    padded = f" {text} "
    ranking = []
    for image in library:
        tags = [
            (tag, tag, confidence)
            for tag, confidence in image.effective().items()
            if f" {tag} " in padded and len(tag.split()) <= LONGEST_PHRASE
        ]
        if tags:
            score = sum(confidence for *_, confidence in tags)
            tags.sort(key=lambda tag: (-tag[2], tag[0]))
            ranking.append((-score, image.seq, image.id, tags))
    ranking.sort(key=lambda entry: entry[:2])
    return [(id_, -score, tags) for score, _, id_, tags in ranking[:limit]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A database for all examples, which leave it without images but not without tags."""
    database = Database.own(tmp_path_factory.mktemp("library"))
    yield Store(database)
    database.close()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_the_index_finds_what_looking_at_everything_finds(
    library: Store, data: st.DataObject
) -> None:
    for image in library.images.page(before=None, size=1000):
        library.images.delete(image.id)
    grown = matcher_of(library)
    pictured: list[Pictured] = []

    def check(matcher: Matcher) -> None:
        text = data.draw(texts, "text")
        limit = data.draw(st.integers(1, 6), "limit")
        matching = matcher.match(text, limit=limit)

        assert tuple(text.split()) == matching.lemmas
        assert brute_force(pictured, text, limit) == [
            (
                match.image_id,
                match.score,
                [(tag.name, tag.lemma, tag.confidence) for tag in match.tags],
            )
            for match in matching.matches
        ]

    if data.draw(st.booleans(), "indexed while empty"):
        check(grown)
    for number in range(data.draw(st.integers(1, 12), "steps")):
        _change(library, pictured, data, number)
        if data.draw(st.booleans(), "ask"):
            check(grown)
    check(grown)
    check(matcher_of(library))


def _change(library: Store, pictured: list[Pictured], data: st.DataObject, number: int) -> None:
    kinds = ["add", "add and tag"] + (["correct", "tag again", "delete"] if pictured else [])
    kind = data.draw(st.sampled_from(kinds), "change")
    if kind.startswith("add"):
        tags = data.draw(some_tags, "tags")
        stored = library.add_image(b"%d" % number, tags=tags, tag_it=kind == "add and tag")
        pictured.append(Pictured(id=stored.id, seq=stored.seq, caller=tags))
        if kind == "add and tag":
            _tag(library, pictured[-1], data)
        return
    image = data.draw(st.sampled_from(pictured), "which")
    match kind:
        case "correct":
            tags = data.draw(some_tags, "set")
            remove = [tag for tag in data.draw(some_tags, "remove") if tag not in tags]
            library.images.update_tags(image.id, set_tags=tags, remove=remove)
            image.caller.update(tags, **dict.fromkeys(remove, 0))
        case "tag again":
            library.database.write(
                lambda connection: (
                    connection.execute(
                        "UPDATE image SET state = 'PENDING', due_at = ?1, pending_since = ?1"
                        " WHERE seq = ?2",
                        (START, image.seq),
                    ).rowcount
                )
            )
            _tag(library, image, data)
        case "delete":
            library.images.delete(image.id)
            pictured.remove(image)


def _tag(library: Store, image: Pictured, data: st.DataObject) -> None:
    image.model = data.draw(some_tags, "model's tags")
    library.tag_by_model(image.id, image.model)
