"""The index's files: made, merged, lost, damaged, and never believed against the database."""

from __future__ import annotations

import errno
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from dispatcher.index import TagIndex, tag_index
from dispatcher.index.writing import write_segment
from storage.database import Database
from storage.errors import StorageFullError
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dispatcher.index.segment import Segment
    from dispatcher.index.writing import Changes


def tag_id(store: Store, name: str) -> int:
    return int(store.database.read("SELECT id FROM tag WHERE name = ?", (name,))[0][0])


def found(store: Store, index: TagIndex, *names: str, limit: int = 100) -> list[tuple[int, int]]:
    """Return (image number, score) of the best images, as of now."""
    index.refresh()
    tags = [tag_id(store, name) for name in names]
    return [(image.seq, image.score) for image in index.search(tags, limit)]


def fill(store: Store, images: int, *, first: int = 0) -> None:
    for number in range(first, first + images):
        store.add_image(b"%d" % number, tags={"dog": number + 1, "cat": 7})


def segments(store: Store) -> list[str]:
    folder = store.tags.index_folder
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_few_images_need_no_files(store: Store) -> None:
    fill(store, 3)

    assert [(3, 3), (2, 2), (1, 1)] == found(store, TagIndex(store.tags), "dog")
    assert [] == segments(store)


def test_many_changes_are_merged_in_the_background_and_the_feed_is_emptied(store: Store) -> None:
    index = TagIndex(store.tags, merge_at=10)
    index.refresh()
    fill(store, 12)
    before = found(store, index, "dog", "cat")
    index.close()

    assert before == found(store, index, "dog", "cat")
    assert 1 == len(segments(store))
    assert 0 == store.count("tagging")


def test_the_next_start_takes_the_files_and_reads_only_what_came_after(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 12)
    found(store, TagIndex(store.tags, merge_at=10), "dog")
    fill(store, 2, first=12)
    monkeypatch.setattr(type(store.tags), "all_rows", None)  # not to be called

    index = TagIndex(store.tags, merge_at=10)

    assert [(14, 14), (13, 13), (12, 12)] == found(store, index, "dog", limit=3)


def test_an_image_that_changed_counts_as_it_is_now(store: Store) -> None:
    fill(store, 12)
    index = TagIndex(store.tags, merge_at=10)
    found(store, index, "dog")
    twelfth, eleventh, *_ = store.images.page(before=None, size=12)
    store.images.delete(twelfth.id)
    store.images.update_tags(eleventh.id, set_tags={"dog": 1}, remove=["cat"])

    assert [(10, 10), (9, 9)] == found(store, index, "dog", limit=2)
    assert (11, 1) in found(store, index, "dog", "cat")
    index.merge()
    assert [(10, 10), (9, 9)] == found(store, index, "dog", limit=2)
    assert (11, 1) in found(store, index, "dog", "cat")


def test_what_changes_while_a_merge_is_under_way_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 12)
    index = TagIndex(store.tags, merge_at=10)
    found(store, index, "dog")
    fill(store, 1, first=12)
    found(store, index, "dog")
    writing, written = threading.Event(), threading.Event()

    def write_slowly(folder: Path, old: Segment | None, changes: Changes) -> None:
        writing.set()
        written.wait()
        write_segment(folder, old, changes)

    monkeypatch.setattr(tag_index, "write_segment", write_slowly)
    merging = threading.Thread(target=index.merge)
    merging.start()
    writing.wait()
    store.images.delete(store.images.page(before=None, size=1)[0].id)
    fill(store, 1, first=20)
    during = found(store, index, "dog", limit=3)
    written.set()
    merging.join()

    assert [(14, 21), (12, 12), (11, 11)] == during
    assert during == found(store, index, "dog", limit=3)
    assert during == found(store, TagIndex(store.tags, merge_at=10), "dog", limit=3)


@pytest.mark.parametrize("name", ["images", "starts", "ordinals", "heads", "bits"])
@pytest.mark.parametrize("damage", ["is gone", "is cut"])
def test_files_that_are_damaged_are_made_anew(
    store: Store, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 200)
    expected = found(store, TagIndex(store.tags, merge_at=10), "dog", "cat")
    (segment,) = segments(store)
    file = store.tags.index_folder / segment / name
    if damage == "is gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-8])

    assert expected == found(store, TagIndex(store.tags, merge_at=10), "dog", "cat")
    assert ["index.made_anew"] == [record.message for record in caplog.records]
    assert [segment] != segments(store)


def test_a_database_from_a_backup_does_not_meet_the_index_of_its_future(
    store: Store, tmp_path: Path
) -> None:
    fill(store, 12)
    index = TagIndex(store.tags, merge_at=10)
    found(store, index, "dog")
    past = tmp_path / "past"
    past.mkdir()
    _back_up(store, past)
    fill(store, 1, first=100)
    found(store, index, "dog")
    index.merge()
    shutil.copytree(store.tags.index_folder, past / "index")

    database = Database.own(past)
    try:
        restored = Store(database)
        fill(restored, 1, first=50)

        assert [(13, 51), (12, 12)] == found(restored, TagIndex(restored.tags), "dog", limit=2)
    finally:
        database.close()


def _back_up(store: Store, folder: Path) -> None:
    for file in store.database.folder.glob("picback.db*"):
        shutil.copy(file, folder)


def test_a_sum_may_be_larger_than_32_bits(store: Store) -> None:
    names = [f"t{number}" for number in range(2_500)]
    image = store.add_image(b"everything", tags={"t0": 1_000_000})
    store.images.update_tags(image.id, set_tags=dict.fromkeys(names, 1_000_000), remove=[])
    store.add_image(b"something", tags={"t0": 1_000_000})

    index = TagIndex(store.tags, merge_at=1)

    assert [(1, 2_500_000_000), (2, 1_000_000)] == found(store, index, *names)
    assert [(1, 1_000_000), (2, 1_000_000)] == found(store, index, "t0")
    assert 1 == len(segments(store))


def test_what_a_killed_merge_left_is_cleared_away(store: Store) -> None:
    fill(store, 12)
    found(store, TagIndex(store.tags, merge_at=10), "dog")
    (segment,) = segments(store)
    (store.tags.index_folder / "1-half-written").mkdir()

    found(store, TagIndex(store.tags, merge_at=10), "dog")

    assert [segment] == segments(store)


def test_a_full_disk_keeps_nobody_from_finding(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_half(folder: Path, old: Segment | None, changes: Changes) -> None:
        write_segment(folder, old, changes)
        raise OSError(errno.ENOSPC, "No space left on device")

    index = TagIndex(store.tags, merge_at=10)
    index.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(tag_index, "write_segment", write_half)
        fill(store, 12)
        found(store, index, "dog")
        index.close()

    assert ["index.not_merged"] == [record.message for record in caplog.records]
    assert [] == segments(store)
    assert [(12, 12)] == found(store, index, "dog", limit=1)
    fill(store, 10, first=12)  # as many again, and there is space
    found(store, index, "dog")
    index.close()
    assert 1 == len(segments(store))
    assert [(22, 22)] == found(store, index, "dog", limit=1)


@pytest.mark.parametrize("what", ["the files", "their name in the database"])
def test_a_first_index_that_does_not_fit_on_the_disk_is_searched_all_the_same(
    what: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def reject(*_: object) -> None:
        raise StorageFullError

    fill(store, 12)
    expected = found(store, TagIndex(store.tags), "dog", "cat")
    with monkeypatch.context() as full:
        if what == "the files":
            full.setattr(tag_index, "write_segment", no_space)
        else:
            full.setattr(type(store.tags), "set_index", reject)
        index = TagIndex(store.tags, merge_at=10)
        index.refresh()

    assert expected == found(store, index, "dog", "cat")
    index.merge()
    assert expected == found(store, index, "dog", "cat")
    assert 1 == len(segments(store))


def test_a_large_first_index_that_does_not_fit_is_a_clear_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(store, 12)
    monkeypatch.setattr(tag_index, "write_segment", no_space)
    monkeypatch.setattr(tag_index, "_ROWS_AT_ONCE", 5)
    with pytest.raises(StorageFullError, match="index of tags cannot be written: No space left"):
        TagIndex(store.tags, merge_at=10).refresh()


def test_an_index_that_the_database_does_not_hear_of_is_not_left_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        msg = "database or disk is full"
        raise StorageFullError(msg)

    fill(store, 12)
    index = TagIndex(store.tags, merge_at=10)
    found(store, index, "dog")
    before = segments(store)
    fill(store, 1, first=12)
    expected = found(store, index, "dog")
    monkeypatch.setattr(type(store.tags), "set_index", refuse)
    with pytest.raises(StorageFullError):
        index.merge()

    assert before == segments(store)
    assert expected == found(store, index, "dog")


def test_a_large_database_is_indexed_piece_by_piece(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 40)
    expected = found(store, TagIndex(store.tags), "dog", "cat")
    monkeypatch.setattr(tag_index, "_ROWS_AT_ONCE", 15)
    monkeypatch.setattr("storage.tags._IMAGES_AT_ONCE", 5)

    assert expected == found(store, TagIndex(store.tags, merge_at=10), "dog", "cat")
    assert 1 == len(segments(store))


@pytest.mark.parametrize(
    "corrections",
    [{"dog": 0}, {"dog": 9}],
    ids=["takes it away", "corrects it"],
)
def test_a_callers_opinion_stands_over_the_models_in_the_files_too(
    store: Store, corrections: Mapping[str, int]
) -> None:
    for number in range(12):
        store.tag_by_model(store.add_image(b"%d" % number, tag_it=True).id, {"dog": 5, "cat": 1})
    store.images.update_tags(
        store.images.page(before=None, size=1)[0].id,
        set_tags={name: value for name, value in corrections.items() if value},
        remove=[name for name, value in corrections.items() if not value],
    )

    index = TagIndex(store.tags, merge_at=10)

    assert corrections["dog"] == dict(found(store, index, "dog")).get(12, 0)
    assert 1 == len(segments(store))
