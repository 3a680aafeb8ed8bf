"""Which image a text means, example by example."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from analysis.lemmas import Lemmatizer
from dispatcher.index import TagIndex
from dispatcher.matcher import Matcher
from storage.errors import StorageFullError
from storage.query_records import Match, MatchedTag
from storage.tags import Tags
from tests.dispatcher.matching import matcher_of
from tests.fakes import FakeLemmatizer
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatcher.matcher import Matching
    from storage.database import Database


def found(matching: Matching) -> list[tuple[str, int]]:
    return [(match.image_id, match.score) for match in matching.matches]


def test_the_image_with_the_highest_sum_wins(store: Store) -> None:
    store.add_image(b"1", tags={"dog": 990_000})
    both = store.add_image(b"2", tags={"dog": 500_000, "sky": 500_000, "car": 900_000})
    matching = matcher_of(store).match("a dog under the sky", limit=1)

    assert ("a", "dog", "under", "the", "sky") == matching.lemmas
    assert (
        Match(
            image_id=both.id,
            score=1_000_000,
            tags=(
                MatchedTag(name="dog", lemma="dog", confidence=500_000),
                MatchedTag(name="sky", lemma="sky", confidence=500_000),
            ),
        ),
    ) == matching.matches


def test_equal_sums_go_to_the_image_stored_first(store: Store) -> None:
    later_ids = [
        store.add_image(bytes([number]), tags=tags).id
        for number, tags in enumerate(
            ({"dog": 300_000, "sky": 300_000}, {"dog": 600_000}, {"sky": 599_999}, {"sky": 600_000})
        )
    ]
    matching = matcher_of(store).match("dog sky", limit=9)

    assert [later_ids[number] for number in (0, 1, 3, 2)] == [id_ for id_, _ in found(matching)]


def test_a_sum_is_exact_where_floats_are_not(store: Store) -> None:
    # 0.1 + 0.2 > 0.3 in floats; here it is a tie, which the first wins.
    first = store.add_image(b"1", tags={"sky": 300_000})
    store.add_image(b"2", tags={"dog": 100_000, "cat": 200_000})

    assert (first.id, 300_000) == found(matcher_of(store).match("dog cat sky", limit=1))[0]


def test_nothing_matches_a_text_without_known_words(store: Store) -> None:
    store.add_image(tags={"dog": 1})
    matching = matcher_of(store).match("a cat", limit=1)

    assert (("a", "cat"), ()) == (matching.lemmas, matching.matches)
    assert () == matcher_of(store).match("", limit=1).matches


def test_a_tag_counts_once_however_often_the_text_says_it(store: Store) -> None:
    image = store.add_image(tags={"dog": 400_000})

    assert [(image.id, 400_000)] == found(matcher_of(store).match("dog dog dog", limit=1))


def test_a_tag_of_several_words_matches_only_as_a_phrase(store: Store) -> None:
    nobody = store.add_image(b"1", tags={"no person": 990_000})
    somebody = store.add_image(b"2", tags={"person": 500_000})
    matcher = matcher_of(store)

    assert [(somebody.id, 500_000)] == found(matcher.match("a person", limit=9))
    assert [(somebody.id, 500_000)] == found(matcher.match("person no", limit=9))
    assert [(somebody.id, 500_000)] == found(matcher.match("no old person", limit=9))
    assert [(nobody.id, 990_000), (somebody.id, 500_000)] == found(
        matcher.match("no person here", limit=9)
    )


def test_a_tag_is_explained_by_the_words_it_met(store: Store) -> None:
    store.add_image(tags={"hot dog": 3, "dog": 2, "a": 2})
    (match,) = matcher_of(store).match("a hot dog", limit=1).matches

    assert [("hot dog", "hot dog", 3), ("a", "a", 2), ("dog", "dog", 2)] == [
        (tag.name, tag.lemma, tag.confidence) for tag in match.tags
    ]


def test_a_new_tag_is_known_to_the_next_query(store: Store) -> None:
    matcher = matcher_of(store)
    image = store.add_image(tags={"dog": 1})

    assert [(image.id, 1)] == found(matcher.match("dog", limit=1))

    store.images.update_tags(image.id, set_tags={"cat": 2}, remove=["dog"])

    assert [] == found(matcher.match("dog", limit=1))
    assert [(image.id, 2)] == found(matcher.match("cat", limit=1))

    store.images.delete(image.id)

    assert [] == found(matcher.match("cat", limit=1))


def test_an_image_deleted_between_search_and_look_up_is_passed_over(store: Store) -> None:
    best = store.add_image(b"1", tags={"dog": 2})
    second = store.add_image(b"2", tags={"dog": 1})
    matcher = matcher_of(store)
    look_up = store.images.ids_of

    def delete_then_look_up(seqs: Sequence[int]) -> dict[int, str]:
        if best.seq in seqs:
            store.images.delete(best.id)
        return look_up(seqs)

    store.images.ids_of = delete_then_look_up  # type: ignore[method-assign]

    assert [(second.id, 1)] == found(matcher.match("dog", limit=1))


def test_keys_are_computed_once_and_kept_for_the_next_start(store: Store) -> None:
    store.add_image(tags={"dog": 1, "cat": 2})
    first = FakeLemmatizer("fake 1")
    matcher = matcher_of(store, first)
    matcher.refresh()
    matcher.match("dog", limit=1)
    store.add_image(b"2", tags={"dog": 1, "sky": 1})
    matcher.match("dog", limit=1)
    second = FakeLemmatizer("fake 1")
    matching = matcher_of(store, second).match("dog sky", limit=1)

    assert ["dog", "cat", "sky"] == first.keyed
    assert [] == second.keyed
    assert 2 == matching.matches[0].score


def test_keys_are_computed_anew_for_another_lemmatizer(store: Store) -> None:
    class Barking(FakeLemmatizer):
        def keys_of_all(self, tags: Sequence[str]) -> list[tuple[str, ...]]:
            return [("woof",) for _ in super().keys_of_all(tags)]

    store.add_image(tags={"dog": 1})
    matcher_of(store, FakeLemmatizer("fake 1")).refresh()
    barking = Barking("fake 2")
    matcher = matcher_of(store, barking)

    assert 1 == len(matcher.match("woof", limit=1).matches)
    assert () == matcher.match("dog", limit=1).matches
    assert ["dog"] == barking.keyed


def test_keys_of_an_older_rule_are_computed_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_image(tags={"dog": 1})
    matcher_of(store).refresh()
    monkeypatch.setattr("dispatcher.matcher.KEYS_REVISION", 1_000_000)
    later = FakeLemmatizer()
    matcher_of(store, later).refresh()

    assert ["dog"] == later.keyed


def test_a_tag_with_several_keys_counts_once(store: Store) -> None:
    class Reading(FakeLemmatizer):
        def keys_of_all(self, tags: Sequence[str]) -> list[tuple[str, ...]]:
            return [(tag, f"{tag}s", tag) for tag in tags]

    image = store.add_image(tags={"dog": 5})

    assert [(image.id, 5)] == found(matcher_of(store, Reading()).match("dogs dog", limit=1))


def test_a_full_disk_does_not_keep_anybody_from_matching(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    class OnFullDisk(Tags):
        def set_keys(self, keys: Mapping[int, Sequence[str]], *, keys_by: str) -> None:
            assert keys
            raise StorageFullError(keys_by)

    store = Store(database)
    store.tags = OnFullDisk(database)
    image = store.add_image(tags={"dog": 5})

    assert [(image.id, 5)] == found(matcher_of(store).match("dog", limit=1))
    assert ["matcher.keys_not_kept"] == [record.message for record in caplog.records]


def test_many_threads_may_ask_while_images_come_and_go(store: Store) -> None:
    matcher = matcher_of(store, index=TagIndex(store.tags, merge_at=5))
    stays = store.add_image(b"stays", tags={"dog": 10})

    def ask(_: int) -> set[str]:
        return {
            match.image_id for _ in range(40) for match in matcher.match("dog", limit=1).matches
        }

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(3)]
        for number in range(30):
            image = store.add_image(b"%d" % number, tags={"dog": 5, "cat": 1})
            store.images.delete(image.id)
        answers = [answer.result() for answer in asking]

    matcher.close()
    assert [{stays.id}] * 3 == answers


@pytest.fixture(scope="module")
def lemmatizer() -> Lemmatizer:
    return Lemmatizer()


@pytest.mark.parametrize(
    ("text", "tag", "lemma"),
    [
        ("Two dogs running on the beach", "dog", "dog"),
        ("Two dogs running on the beach", "running", "run"),
        ("old buildings", "building", "building"),
        ("a tree without leaves", "leaf", "leaf"),
        ("NO PERSON", "no person", "no person"),
        ("hot dogs for everybody", "hot dog", "hot dog"),
    ],
)
def test_real_texts_meet_real_tags(
    store: Store, lemmatizer: Lemmatizer, text: str, tag: str, lemma: str
) -> None:
    store.add_image(tags={tag: 7, "something else": 9})
    matching = Matcher(tags=store.tags, images=store.images, lemmatizer=lemmatizer).match(
        text, limit=1
    )

    assert [(MatchedTag(name=tag, lemma=lemma, confidence=7),)] == [
        match.tags for match in matching.matches
    ]


def test_a_real_text_about_a_person_is_not_about_no_person(
    store: Store, lemmatizer: Lemmatizer
) -> None:
    store.add_image(tags={"no person": 990_000})
    matcher = Matcher(tags=store.tags, images=store.images, lemmatizer=lemmatizer)

    assert () == matcher.match("A person with no hat", limit=1).matches
    assert () == matcher.match("No, person after person", limit=1).matches
