from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from storage.errors import StorageError

if TYPE_CHECKING:
    from storage.tags import Postings
    from tests.store import Store


def effective(store: Store, image_id: str) -> list[tuple[str, int, str]]:
    return [(tag.name, tag.confidence, tag.source) for tag in store.images.get(image_id).tags]


def tag_id(store: Store, name: str) -> int:
    return next(tag.id for tag in store.tags.names(after=0, keys_by="") if tag.name == name)


def test_a_callers_opinion_of_a_tag_stands_over_the_models(store: Store) -> None:
    image = store.add_image(tags={"dog": 100_000}, tag_it=True)
    store.tag_by_model(image.id, {"dog": 990_000, "cat": 500_000})

    assert [("cat", 500_000, "MODEL"), ("dog", 100_000, "CALLER")] == effective(store, image.id)
    assert [
        (image.seq, [(tag_id(store, "dog"), 100_000), (tag_id(store, "cat"), 500_000)])
    ] == store.tags.changed_since(0)[1]


def test_a_tag_that_was_taken_away_stays_away_when_the_image_is_tagged_again(store: Store) -> None:
    image = store.add_image(tag_it=True)
    store.images.update_tags(image.id, set_tags={}, remove=["dog"])
    store.tag_by_model(image.id, {"dog": 990_000, "cat": 500_000})

    assert [("cat", 500_000, "MODEL")] == effective(store, image.id)
    assert [(image.seq, [(tag_id(store, "cat"), 500_000)])] == store.tags.changed_since(0)[1]


def test_a_tag_that_was_taken_away_can_be_given_back(store: Store) -> None:
    image = store.add_image(tags={"dog": 1})
    store.images.update_tags(image.id, set_tags={}, remove=["dog"])
    given_back = store.images.update_tags(image.id, set_tags={"dog": 7}, remove=())

    assert [("dog", 7)] == [(tag.name, tag.confidence) for tag in given_back.tags]


def test_a_model_replaces_what_a_model_said_before_and_nothing_else(store: Store) -> None:
    image = store.add_image(tags={"mine": 3}, tag_it=True)
    store.tag_by_model(image.id, {"dog": 1, "cat": 2}, model="m/1")
    store.database.write(
        lambda connection: (
            connection.execute("UPDATE image SET state = 'PENDING', due_at = 0").rowcount
        )
    )
    store.tag_by_model(image.id, {"cat": 5}, model="m/2")

    assert [("cat", 5, "m/2"), ("mine", 3, "")] == [
        (tag.name, tag.confidence, tag.model) for tag in store.images.get(image.id).tags
    ]


def test_an_image_whose_last_tag_is_taken_away_has_no_postings(store: Store) -> None:
    image = store.add_image(tags={"dog": 1})
    watermark = store.tags.watermark()
    store.images.update_tags(image.id, set_tags={}, remove=["dog"])

    assert (watermark + 1, [(image.seq, [])]) == store.tags.changed_since(watermark)


def test_tags_of_equal_confidence_are_sorted_by_name(store: Store) -> None:
    image = store.add_image(tags={"b": 5, "c": 9, "a": 5})

    assert ["c", "a", "b"] == [tag.name for tag in image.tags]


def test_a_tag_is_stored_once_however_many_images_have_it(store: Store) -> None:
    store.add_image(b"a", tags={"dog": 1})
    store.add_image(b"b", tags={"dog": 2})

    assert 1 == store.count("tag")


@pytest.mark.parametrize("confidence", [-1, 1_000_001, 0.5])
def test_a_confidence_that_is_no_count_of_millionths_is_refused(
    store: Store, confidence: int
) -> None:
    with pytest.raises(StorageError):
        store.add_image(tags={"fine": 1, "dog": confidence})

    assert (0, 0, 0) == tuple(map(store.count, ("image", "tag", "tagging")))


def test_the_feed_tells_what_changed_and_only_that(store: Store) -> None:
    one = store.add_image(b"1", tags={"dog": 1})
    two = store.add_image(b"2", tags={"dog": 2})
    watermark = store.tags.watermark()

    assert (watermark, []) == store.tags.changed_since(watermark)

    store.images.update_tags(two.id, set_tags={"dog": 3}, remove=())
    store.images.update_tags(two.id, set_tags={"dog": 4}, remove=())
    later, changed = store.tags.changed_since(watermark)

    assert watermark + 2 == later == store.tags.watermark()
    assert [(two.seq, [(tag_id(store, "dog"), 4)])] == changed
    assert one.seq in dict(store.tags.changed_since(0)[1])


def test_an_image_without_tags_is_no_news(store: Store) -> None:
    store.add_image(tag_it=True)

    assert 0 == store.tags.watermark()
    assert [] == list(store.tags.all_rows())


def test_all_rows_come_sorted_the_callers_before_the_models(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.tags._IMAGES_AT_ONCE", 2)
    for number in range(5):
        image = store.add_image(b"%d" % number, tags={"dog": number}, tag_it=True)
        store.tag_by_model(image.id, {"dog": 9, "cat": 8})
    dog, cat = tag_id(store, "dog"), tag_id(store, "cat")

    assert [(seq, *row) for seq in range(1, 6) for row in ((dog, seq - 1), (dog, 9), (cat, 8))] == [
        row for rows in store.tags.all_rows() for row in rows
    ]


def test_the_feed_is_needed_no_more_up_to_where_an_index_goes(store: Store) -> None:
    for number in range(4):
        store.add_image(b"%d" % number, tags={"dog": 1})
    assert store.tags.index() is None
    store.tags.set_index("first", 3)

    assert ("first", 3) == store.tags.index()
    assert [4] == [seq for seq, _ in store.tags.changed_since(3)[1]]
    store.tags.set_index("second", 4)
    assert ("second", 4) == store.tags.index()
    assert 4 == store.tags.watermark()
    store.add_image(b"next", tags={"dog": 1})
    assert (5, [5]) == (
        store.tags.watermark(),
        [seq for seq, _ in store.tags.changed_since(4)[1]],
    )


def test_keys_are_kept_for_the_lemmatizer_that_computed_them(store: Store) -> None:
    store.add_image(tags={"dogs": 1, "cats": 2})
    dogs, cats = store.tags.names(after=0, keys_by="en 1")
    store.tags.set_keys({dogs.id: ["dog", "hound"]}, keys_by="en 1")

    assert (None, None) == (dogs.keys, cats.keys)
    assert [("dogs", ("dog", "hound")), ("cats", None)] == [
        (tag.name, tag.keys) for tag in store.tags.names(after=0, keys_by="en 1")
    ]
    assert [None, None] == [tag.keys for tag in store.tags.names(after=0, keys_by="en 2")]
    assert [cats.name] == [tag.name for tag in store.tags.names(after=dogs.id, keys_by="en 1")]

    store.tags.set_keys({dogs.id: []}, keys_by="en 2")  # it has no keys, which is known

    assert () == store.tags.names(after=0, keys_by="en 2")[0].keys
    assert store.tags.names(after=0, keys_by="en 1")[0].keys is None


def test_a_follower_of_the_feed_misses_nothing_that_many_threads_change(store: Store) -> None:
    followed: dict[int, list[tuple[int, int]]] = {}
    watermarks = [0]
    done = threading.Event()

    def take(changed: list[Postings]) -> None:
        followed.update(changed)

    def follow() -> None:
        while True:
            last_round = done.is_set()
            watermark, changed = store.tags.changed_since(watermarks[-1])
            take(changed)
            watermarks.append(watermark)
            if last_round:
                return

    def change(seed: int) -> None:
        rng = random.Random(seed)
        for number in range(25):
            image = store.add_image(b"%d/%d" % (seed, number), tags={rng.choice("abc"): 1})
            if rng.random() < 0.5:
                store.images.update_tags(image.id, set_tags={"d": 2}, remove=[rng.choice("abc")])
            if rng.random() < 0.3:
                store.images.delete(image.id)

    with ThreadPoolExecutor(5) as pool:
        follower = pool.submit(follow)
        for changing in [pool.submit(change, seed) for seed in range(4)]:
            changing.result()
        done.set()
        follower.result()

    assert sorted(watermarks) == watermarks
    assert len(set(watermarks)) > 10  # it did read while they wrote
    assert dict(store.tags.changed_since(0)[1]) == followed
    assert 100 == len(followed)
