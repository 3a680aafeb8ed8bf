from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from analysis.images import Rendition
from storage.errors import ImageNotFoundError, RequestIdReusedError, StorageError
from storage.images import ImageFile, TaggingFailed, TagLater, TagsFound
from tests.fakes import START
from tests.store import new_image

if TYPE_CHECKING:
    from storage.images import Image, TaggingLease
    from tests.store import Store

ID_THAT_IS_NONE = "img_00000000000000000000000000"


def lease_one(store: Store, *, now: int = START) -> TaggingLease:
    (lease,) = store.images.lease_for_tagging(limit=1, now=now)
    return lease


def tags_of(image: Image) -> dict[str, int]:
    return {tag.name: tag.confidence for tag in image.tags}


def test_an_image_comes_back_as_it_was_given(store: Store) -> None:
    content = bytes(range(256))
    image, created = store.images.add(
        new_image(content), tags_of_caller={"dog": 5}, request=None, tag_it=False, now=START
    )

    assert created
    assert content == store.images.content(image.seq)
    assert image == store.images.get(image.id)
    assert ("image/png", 256, 3, 2, "READY", START) == (
        image.media_type,
        image.size_bytes,
        image.width,
        image.height,
        image.state,
        image.created_at,
    )
    assert image.id.startswith("img_")


def test_an_image_waits_for_its_tagger_if_there_is_one(store: Store) -> None:
    assert "PENDING" == store.add_image(b"a", tag_it=True).state
    assert "READY" == store.add_image(b"b", tag_it=False).state
    assert START == store.images.next_tagging_due_at()


def test_the_same_bytes_are_stored_once(store: Store) -> None:
    first = store.add_image(b"same", now=START)
    again, created = store.images.add(
        new_image(b"same"), tags_of_caller={}, request=None, tag_it=True, now=START + 1
    )

    assert not created
    assert first == again
    assert (1, 1) == (store.count("image"), store.count("image_content"))


def test_uploading_again_adds_the_callers_tags(store: Store) -> None:
    store.add_image(b"same", tags={"dog": 1_000_000, "cat": 300_000})
    again = store.add_image(b"same", tags={"cat": 400_000, "sky": 200_000})

    assert {"dog": 1_000_000, "cat": 400_000, "sky": 200_000} == tags_of(again)


def test_uploading_an_image_that_is_ready_does_not_tag_it_again(store: Store) -> None:
    store.add_image(b"same", tag_it=False)
    again = store.add_image(b"same", tag_it=True)

    assert "READY" == again.state
    assert store.images.next_tagging_due_at() is None


def test_uploading_an_image_that_failed_makes_it_wait_again(store: Store) -> None:
    store.add_image(b"same", tag_it=True)
    store.images.settle_tagging(
        [(lease_one(store), TaggingFailed(reason="TAGGER_REJECTED", message="No."))]
    )
    failed = store.add_image(b"same", tag_it=False)
    again = store.add_image(b"same", tag_it=True, now=START + 9)

    assert ("FAILED", "TAGGER_REJECTED", "No.") == (
        failed.state,
        failed.failure_reason,
        failed.failure_message,
    )
    assert ("PENDING", None, None) == (again.state, again.failure_reason, again.failure_message)
    assert START + 9 == store.images.next_tagging_due_at()
    lease = lease_one(store, now=START + 9)
    assert (2, START + 9) == (lease.attempt, lease.pending_since)


def test_the_same_request_stores_once_and_answers_the_same(store: Store) -> None:
    request = store.request("r1")
    first = store.add_image(b"a", request=request, tags={"dog": 1})
    again, created = store.images.add(
        new_image(b"a"), tags_of_caller={"dog": 1}, request=request, tag_it=False, now=START + 1
    )

    assert not created
    assert first == again
    assert (1, 1, 1) == tuple(map(store.count, ("image", "request", "tagging")))


def test_a_request_id_of_another_request_is_refused_and_changes_nothing(store: Store) -> None:
    first = store.add_image(b"a", request=store.request("r1", of=b"x"))
    with pytest.raises(RequestIdReusedError, match="'r1'"):
        store.add_image(b"b", tags={"dog": 1}, request=store.request("r1", of=b"y"))

    assert (1, 0, 1) == tuple(map(store.count, ("image", "tag", "request")))
    assert first == store.images.get(first.id)


def test_what_is_known_of_a_file_is_what_its_image_tells(store: Store) -> None:
    store.add_image(b"a")
    image = store.add_image(b"an image", tags={"dog": 1})

    assert store.images.file_of(image.id) == ImageFile(
        seq=image.seq,
        id=image.id,
        sha256=image.sha256,
        media_type="image/png",
        size_bytes=8,
        width=3,
        height=2,
    )


def test_another_keys_request_id_is_another_one(store: Store) -> None:
    first = store.add_image(b"a", request=store.request("r1", of=b"x", key="alice"))
    second = store.add_image(b"b", request=store.request("r1", of=b"y", key="bob"))

    assert first.id != second.id
    assert 2 == store.count("request")


def test_two_requests_may_store_the_same_bytes(store: Store) -> None:
    first = store.add_image(b"a", request=store.request("r1"))
    second = store.add_image(b"a", request=store.request("r2"))

    assert first.id == second.id
    assert 2 == store.count("request")


def test_deleting_leaves_nothing_but_the_news(store: Store) -> None:
    image = store.add_image(b"a", tags={"dog": 1}, request=store.request("r1"))
    other = store.add_image(b"b", tags={"dog": 2}, request=store.request("r2"))
    watermark = store.tags.watermark()
    store.images.delete(image.id)

    for what in (
        lambda: store.images.get(image.id),
        lambda: store.images.file_of(image.id),
        lambda: store.images.content(image.seq),
        lambda: store.images.delete(image.id),
    ):
        with pytest.raises(ImageNotFoundError):
            what()
    assert (1, 1, 1, 1) == tuple(
        map(store.count, ("image", "image_content", "image_tag", "request"))
    )
    assert (watermark + 1, [(image.seq, [])]) == store.tags.changed_since(watermark)
    assert {other.seq: other.id} == store.images.ids_of([image.seq, other.seq])


def test_a_request_of_a_deleted_image_stores_again(store: Store) -> None:
    request = store.request("r1")
    first = store.add_image(b"a", request=request)
    store.images.delete(first.id)
    second = store.add_image(b"a", request=request)

    assert first.id != second.id
    assert first.seq < second.seq  # numbers are never used twice


def test_what_is_not_there_cannot_be_changed(store: Store) -> None:
    with pytest.raises(ImageNotFoundError):
        store.images.update_tags(ID_THAT_IS_NONE, set_tags={"dog": 1}, remove=())
    with pytest.raises(ImageNotFoundError):
        store.images.delete(ID_THAT_IS_NONE)

    assert (0, 0) == (store.count("tag"), store.count("tagging"))


def test_pages_go_from_newest_to_oldest_and_overlap_nowhere(store: Store) -> None:
    made = [store.add_image(bytes([number]), tags={"t": number}).id for number in range(1, 6)]
    store.images.delete(made.pop(2))
    pages: list[list[Image]] = [store.images.page(before=None, size=3)]
    while pages[-1]:
        pages.append(store.images.page(before=pages[-1][-1].seq, size=3))

    assert [3, 1, 0] == [len(page) for page in pages]
    assert made[::-1] == [image.id for image in itertools.chain(*pages)]
    assert [{"t": 5}, {"t": 4}] == [tags_of(image) for image in pages[0][:2]]


def test_images_are_leased_longest_due_first_and_only_when_due(store: Store) -> None:
    for number, due in enumerate((3, 1, 2)):
        store.add_image(bytes([number]), tag_it=True, now=START + due)

    def leased(limit: int, now: int) -> list[int]:
        return [
            lease.pending_since - START
            for lease in store.images.lease_for_tagging(limit=limit, now=START + now)
        ]

    assert [] == leased(9, 0)
    assert [1] == leased(1, 2)
    assert START + 2 == store.images.next_tagging_due_at()
    assert [2, 3] == leased(9, 3)
    assert [] == leased(9, 3)
    assert store.images.next_tagging_due_at() is None


def test_images_due_at_the_same_time_are_leased_in_the_order_they_came(store: Store) -> None:
    made = [store.add_image(bytes([number]), tag_it=True).id for number in range(4)]
    leased = [lease.id for lease in store.images.lease_for_tagging(limit=3, now=START)]

    assert made[:3] == leased


def test_a_settled_lease_leaves_the_tags(store: Store) -> None:
    image = store.add_image(tag_it=True)
    lease = lease_one(store)
    store.images.settle_tagging([(lease, TagsFound(tags={"dog": 9, "cat": 10}, model="m/1"))])
    image = store.images.get(image.id)

    assert "READY" == image.state
    assert [("cat", 10, "MODEL", "m/1"), ("dog", 9, "MODEL", "m/1")] == [
        (tag.name, tag.confidence, tag.source, tag.model) for tag in image.tags
    ]


def test_a_tagger_that_sees_nothing_leaves_the_image_ready(store: Store) -> None:
    store.add_image(tag_it=True)
    lease = lease_one(store)
    store.images.settle_tagging([(lease, TagsFound(tags={}, model="m/1"))])

    assert "READY" == store.images.get(lease.id).state
    assert () == store.images.get(lease.id).tags


def test_an_image_to_be_tagged_later_is_due_then(store: Store) -> None:
    store.add_image(tag_it=True)
    store.images.settle_tagging([(lease_one(store), TagLater(due_at=START + 60_000))])

    assert START + 60_000 == store.images.next_tagging_due_at()
    assert [] == store.images.lease_for_tagging(limit=1, now=START + 59_999)
    lease = lease_one(store, now=START + 60_000)
    assert (2, START) == (lease.attempt, lease.pending_since)


@pytest.mark.parametrize(
    "outcome",
    [
        TagsFound(tags={"late": 1}, model="m/1"),
        TaggingFailed(reason="TAGGER_REJECTED", message="No."),
        TagLater(due_at=START + 1),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_a_lost_lease_changes_nothing(
    store: Store, outcome: TagsFound | TaggingFailed | TagLater
) -> None:
    settled = store.add_image(b"settled", tag_it=True)
    lost = lease_one(store)
    store.images.settle_tagging([(lost, TagsFound(tags={"dog": 1}, model="m/1"))])
    leased_anew = store.add_image(b"leased anew", tag_it=True)
    stale = lease_one(store)
    store.images.void_leases(max_interruptions=5, now=START)
    held = lease_one(store)
    deleted = store.add_image(b"deleted", tag_it=True)
    orphan = lease_one(store)
    store.images.delete(deleted.id)
    before = [store.images.get(image.id) for image in (settled, leased_anew)]
    watermark = store.tags.watermark()

    store.images.settle_tagging([(lost, outcome), (stale, outcome), (orphan, outcome)])

    assert before == [store.images.get(image.id) for image in (settled, leased_anew)]
    assert watermark == store.tags.watermark()
    assert store.images.next_tagging_due_at() is None
    # Whoever holds the lease is not disturbed.
    store.images.settle_tagging([(held, TagsFound(tags={"cat": 1}, model="m/1"))])
    assert {"cat": 1} == tags_of(store.images.get(leased_anew.id))


def test_a_lease_is_lost_between_being_voided_and_leased_again(store: Store) -> None:
    image = store.add_image(tag_it=True)
    stale = lease_one(store)
    store.images.void_leases(max_interruptions=5, now=START + 7)
    store.images.settle_tagging([(stale, TagsFound(tags={"late": 1}, model="m/1"))])

    assert "PENDING" == store.images.get(image.id).state
    assert START + 7 == store.images.next_tagging_due_at()


def test_an_image_that_was_leased_when_processes_died_waits_longer_each_time_and_then_fails(
    store: Store,
) -> None:
    image = store.add_image(tag_it=True)
    waits, now = [], START
    for _ in range(4):
        (lease,) = store.images.lease_for_tagging(limit=1, now=now)
        assert [] == store.images.void_leases(max_interruptions=5, now=now)
        due_at = store.images.next_tagging_due_at()
        assert due_at is not None
        waits.append((due_at - now) // 1000)
        now = due_at
    (lease,) = store.images.lease_for_tagging(limit=1, now=now)
    failed = store.images.void_leases(max_interruptions=5, now=now)

    assert [0, 1, 3, 7] == waits
    assert (5, 4) == (lease.attempt, lease.interruptions)
    assert [image.id] == failed
    found = store.images.get(image.id)
    assert ("FAILED", "IMAGE_UNPROCESSABLE") == (found.state, found.failure_reason)
    assert store.images.next_tagging_due_at() is None


def test_only_interruptions_count_and_an_upload_of_the_same_bytes_forgets_them(
    store: Store,
) -> None:
    store.add_image(b"same", tag_it=True)
    for outcome in (
        TagLater(due_at=START),
        TagLater(due_at=START, is_interrupted=True),
        TagLater(due_at=START),
    ):
        store.images.settle_tagging([(lease_one(store), outcome)])
    lease = lease_one(store)
    assert 1 == lease.interruptions
    failed = TaggingFailed(reason="IMAGE_UNPROCESSABLE", message="No.")
    store.images.settle_tagging([(lease, failed)])
    store.add_image(b"same", tag_it=True)

    assert 0 == lease_one(store).interruptions


def test_renditions_are_stored_with_their_image_and_go_with_it(store: Store) -> None:
    renditions = [Rendition("PREVIEW", 4, 3, b"larger"), Rendition("THUMBNAIL", 2, 1, b"small")]
    image = store.add_image(b"a", renditions=renditions)
    other = store.add_image(b"b")

    assert b"larger" == store.images.rendition(image.seq, "PREVIEW")
    assert b"small" == store.images.rendition(image.seq, "THUMBNAIL")
    assert store.images.rendition(other.seq, "PREVIEW") is None
    store.images.delete(image.id)
    assert store.images.rendition(image.seq, "PREVIEW") is None


def test_an_upload_of_the_same_bytes_brings_renditions_that_are_missing(store: Store) -> None:
    image = store.add_image(b"a")
    for content in (b"made", b"made again"):
        store.add_image(b"a", renditions=[Rendition("PREVIEW", 4, 3, content)])

    assert b"made" == store.images.rendition(image.seq, "PREVIEW")


def test_renditions_can_come_later_but_not_to_an_image_that_was_deleted(store: Store) -> None:
    image, deleted = store.add_image(b"a"), store.add_image(b"b")
    store.images.delete(deleted.id)
    for each in (image, deleted, image):
        store.images.add_renditions(each.seq, [Rendition("PREVIEW", 4, 3, b"later")])

    assert b"later" == store.images.rendition(image.seq, "PREVIEW")
    assert store.images.rendition(deleted.seq, "PREVIEW") is None


def test_voiding_leaves_those_that_merely_wait_as_they_are(store: Store) -> None:
    store.add_image(b"waits", tag_it=True, now=START + 100)
    store.images.void_leases(max_interruptions=5, now=START)

    assert START + 100 == store.images.next_tagging_due_at()


def test_a_mixed_batch_is_settled_image_by_image(store: Store) -> None:
    made = [store.add_image(bytes([number]), tag_it=True).id for number in range(3)]
    one, two, three = store.images.lease_for_tagging(limit=3, now=START)
    store.images.settle_tagging(
        [
            (one, TagsFound(tags={"dog": 1}, model="m/1")),
            (two, TaggingFailed(reason="TAGGER_REJECTED", message="No.")),
            (three, TagLater(due_at=START + 5)),
        ]
    )

    assert ["READY", "FAILED", "PENDING"] == [store.images.get(id_).state for id_ in made]


def test_changes_of_an_image_wake_those_who_watch_it(store: Store) -> None:
    image = store.add_image(tag_it=True)
    lease = lease_one(store)
    with store.images.changes.watch(image.id) as changed:
        for change in (
            lambda: store.add_image(tag_it=True),
            lambda: store.images.update_tags(image.id, set_tags={"dog": 1}, remove=()),
            lambda: store.images.settle_tagging([(lease, TagLater(due_at=START))]),
            lambda: store.images.delete(image.id),
        ):
            changed.clear()
            change()

            assert changed.is_set()


@pytest.mark.parametrize(
    "change",
    [
        "state = 'ODD'",
        "state = 'FAILED'",
        "state = 'READY'",
        "failure_reason = 'TAGGER_REJECTED'",
        "leased_at = 1",
        "due_at = NULL",
        "width = 'three'",
        "media_type = NULL",
    ],
)
def test_a_waiting_image_cannot_be_put_into_a_state_that_makes_no_sense(
    store: Store, change: str
) -> None:
    image = store.add_image(tag_it=True)
    with pytest.raises(StorageError):
        store.database.write(
            lambda connection: connection.execute(f"UPDATE image SET {change}").rowcount
        )

    assert image == store.images.get(image.id)
