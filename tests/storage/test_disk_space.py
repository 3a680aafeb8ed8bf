"""Who may use up the free space of a disk, and what becomes of the reserve."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage.disk_space import DiskSpace
from storage.errors import StorageFullError
from tests.storage.writing import ask, busy_writer, insert, names, settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.database import Database

BLOCK: Final = 4096
RESERVE: Final = 16 * BLOCK
#: Of 16 reserves and more, so that a reserve is not too large for it.
DISK: Final = 512 * BLOCK
MIN_FREE: Final = 32 * BLOCK


class FakeDisk:
    """The space of a disk that holds a directory's reserve, and whatever else *used* stands for.

    Attributes:
        used: Bytes that others take up.
        looks: How often it was asked about.
        now: The time in seconds, which only tests let pass.
    """

    def __init__(self, directory: Path) -> None:
        self._reserve = directory / "reserve"
        self.used = 0
        self.looks = 0
        self.now = 0.0

    @property
    def reserve(self) -> int:
        return self._reserve.stat().st_size if self._reserve.exists() else 0

    @property
    def free(self) -> int:
        return DISK - self.used - self.reserve

    def statvfs(self, _: Path) -> Any:
        self.looks += 1
        return SimpleNamespace(f_bavail=self.free // BLOCK, f_blocks=DISK // BLOCK, f_frsize=BLOCK)

    def write(self, size: int) -> None:
        """Take up *size* bytes, as a database does."""
        if size > self.free:
            raise StorageFullError
        self.used += size

    def space(self, directory: Path, **options: Any) -> DiskSpace:
        """Return what is to be tested."""
        options = {"min_free_bytes": MIN_FREE, "reserve_bytes": RESERVE, **options}
        return DiskSpace(directory, monotonic=lambda: self.now, statvfs=self.statvfs, **options)


@pytest.fixture
def disk(tmp_path: Path) -> FakeDisk:
    return FakeDisk(tmp_path)


@pytest.fixture
def space(disk: FakeDisk, tmp_path: Path) -> DiskSpace:
    space = disk.space(tmp_path)
    space.maintain()
    return space


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


def test_the_reserve_is_really_allocated_and_its_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        DiskSpace(tmp_path, reserve_bytes=1_000_000).maintain()
    finally:
        os.umask(old)
    found = (tmp_path / "reserve").stat()

    assert (1_000_000, 0o600) == (found.st_size, stat.S_IMODE(found.st_mode))
    assert found.st_size <= 512 * found.st_blocks


def test_a_system_without_fallocate_writes_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    (tmp_path / "reserve").write_bytes(b"an earlier one, cut short")
    DiskSpace(tmp_path, reserve_bytes=3_000_000).maintain()
    found = (tmp_path / "reserve").stat()

    assert found.st_size == 3_000_000 <= 512 * found.st_blocks


def test_the_reserve_takes_a_sixteenth_of_a_small_disk(disk: FakeDisk, tmp_path: Path) -> None:
    disk.space(tmp_path, reserve_bytes=DISK).maintain()

    assert DISK // 16 == disk.reserve


def test_the_disk_is_looked_at_once_a_second_however_many_write(
    disk: FakeDisk, space: DiskSpace
) -> None:
    before = disk.looks
    for tenths in range(30):
        disk.now = tenths / 10
        for _ in range(100):
            space.require_for_new_data()
            space.require()

    assert 2 == disk.looks - before


def test_threads_that_come_together_look_once(disk: FakeDisk, space: DiskSpace) -> None:
    disk.now = 1.5
    before = disk.looks
    threads = [threading.Thread(target=space.require) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 1 == disk.looks - before


def test_new_data_is_rejected_as_soon_as_less_is_free_than_must_be(
    disk: FakeDisk, space: DiskSpace
) -> None:
    disk.used = DISK - RESERVE - MIN_FREE
    disk.now = 2
    space.require_for_new_data()
    disk.used += BLOCK
    disk.now = 4
    with pytest.raises(StorageFullError, match="less than 131,072 bytes are free"):
        space.require_for_new_data()
    space.require()  # all else goes on


def test_0_accepts_new_data_until_the_disk_is_full(disk: FakeDisk, tmp_path: Path) -> None:
    space = disk.space(tmp_path, min_free_bytes=0)
    space.maintain()
    disk.used = DISK - RESERVE
    disk.now = 2

    space.require_for_new_data()
    space.require()


def test_what_deleted_images_left_inside_the_database_counts_as_free_for_new_data(
    disk: FakeDisk, tmp_path: Path
) -> None:
    reusable = MIN_FREE - BLOCK
    space = disk.space(tmp_path, reusable_bytes=lambda: reusable)
    space.maintain()
    disk.used = DISK - RESERVE
    disk.now = 2
    with pytest.raises(StorageFullError):
        space.require_for_new_data()
    reusable = MIN_FREE
    disk.now = 4

    space.require_for_new_data()


def test_a_database_knows_what_deleted_rows_left(database: Database) -> None:
    database.write(insert("big", bytes(1_000_000)))
    before = database._reusable_bytes()
    database.write(lambda connection: connection.execute("DELETE FROM setting").rowcount)

    assert 900_000 < database._reusable_bytes() - before < 1_100_000


def test_what_needs_the_reserve_gets_it_and_the_rest_is_allocated_again(
    disk: FakeDisk, space: DiskSpace
) -> None:
    disk.used = DISK - RESERVE
    space.use_reserve(lambda: disk.write(BLOCK))

    assert (RESERVE - BLOCK, 0) == (disk.reserve, disk.free)


def test_a_write_for_which_there_is_space_leaves_the_reserve_alone(
    disk: FakeDisk, space: DiskSpace
) -> None:
    disk.used = DISK - RESERVE - BLOCK
    space.use_reserve(lambda: disk.write(BLOCK))

    assert RESERVE == disk.reserve


def test_what_needs_more_than_the_reserve_fails_and_leaves_it_whole(
    disk: FakeDisk, space: DiskSpace
) -> None:
    disk.used = DISK - RESERVE
    with pytest.raises(StorageFullError):
        space.use_reserve(lambda: disk.write(RESERVE + BLOCK))

    assert RESERVE == disk.reserve


def test_two_processes_may_release_the_reserve_at_once(
    disk: FakeDisk, space: DiskSpace, tmp_path: Path
) -> None:
    beside = DiskSpace(tmp_path, statvfs=disk.statvfs)
    disk.used = DISK - RESERVE
    with space.released():
        beside.use_reserve(lambda: disk.write(BLOCK))
        with beside.released():
            disk.write(BLOCK)

    assert RESERVE - 2 * BLOCK == disk.reserve


def test_ordinary_writes_leave_to_others_what_the_reserve_lacks(
    disk: FakeDisk, space: DiskSpace
) -> None:
    disk.used = DISK - RESERVE
    with space.released():
        disk.write(BLOCK)
        with pytest.raises(StorageFullError, match="is kept for deleting"):
            space.require()


def test_the_reserve_grows_again_when_there_is_twice_what_it_lacks(
    disk: FakeDisk, space: DiskSpace
) -> None:
    disk.used = DISK - RESERVE
    space.use_reserve(lambda: disk.write(4 * BLOCK))
    disk.used -= 7 * BLOCK
    space.maintain()
    too_little = disk.reserve
    disk.used -= BLOCK
    space.maintain()

    assert RESERVE - 4 * BLOCK == too_little
    assert RESERVE == disk.reserve


def test_a_start_does_not_take_the_last_space_from_other_programs(
    disk: FakeDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk.used = DISK - 2 * RESERVE + BLOCK
    space = disk.space(tmp_path)
    space.maintain()
    space.maintain()

    assert 0 == disk.reserve
    assert ["storage.space_low", "storage.reserve_missing"] == events(caplog)


def test_each_change_is_logged_once(
    disk: FakeDisk, space: DiskSpace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for used in (0, DISK - RESERVE, DISK - RESERVE, 0, 0):
        disk.used = used
        disk.now += 2
        if disk.free == 0:
            space.use_reserve(lambda: disk.write(BLOCK))
        space.maintain()

    assert [
        "storage.space_low",
        "storage.reserve_missing",
        "storage.space_recovered",
        "storage.reserve_allocated",
    ] == events(caplog)


class Limit:
    """A limit to the growth of a database, which a reserve lifts for a block."""

    def __init__(self, database: Database) -> None:
        self._writer = database._writer
        self._pages = database.read("PRAGMA page_count")[0][0] + 2
        self.lifted = 0
        self._set(self._pages)
        assert self._writer is not None
        self._writer._with_reserve = self.released

    @contextmanager
    def released(self) -> Iterator[None]:
        self.lifted += 1
        self._set(1_000_000)
        yield
        self._set(self._pages)

    def _set(self, pages: int) -> None:
        assert self._writer is not None
        self._writer._connection.execute(f"PRAGMA max_page_count={pages}").fetchall()


def test_of_operations_that_share_a_transaction_only_those_that_may_use_the_reserve(
    database: Database,
) -> None:
    limit = Limit(database)
    with busy_writer(database):
        asked = [
            ask(database, insert("settled", bytes(100_000)), uses_reserve=True),
            ask(database, insert("uploaded", bytes(1_000_000))),
            ask(database, insert("small")),
        ]
    settled, uploaded, small = settle(asked)

    assert (1, StorageFullError, 1) == (settled, type(uploaded), small)
    assert ["settled", "small"] == names(database)
    assert 1 == limit.lifted


def test_what_fails_only_beside_something_large_needs_no_reserve(database: Database) -> None:
    limit = Limit(database)
    with busy_writer(database):
        asked = [
            ask(database, insert("settled"), uses_reserve=True),
            ask(database, insert("uploaded", bytes(1_000_000))),
        ]
    settled, uploaded = settle(asked)

    assert (1, StorageFullError) == (settled, type(uploaded))
    assert 0 == limit.lifted


def test_an_operation_that_the_reserve_is_too_small_for_is_told_so(database: Database) -> None:
    limit = Limit(database)
    with pytest.raises(StorageFullError):
        database.write(
            lambda connection: (
                connection.execute("PRAGMA max_page_count=1").fetchall(),
                insert("large", bytes(1_000_000))(connection),
            ),
            uses_reserve=True,
        )

    assert 1 == limit.lifted
    assert [] == names(database)


def test_ordinary_operations_are_rejected_one_by_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject() -> None:
        raise StorageFullError

    with busy_writer(database):
        monkeypatch.setattr(database.disk_space, "require", reject)
        asked = [
            ask(database, insert("ordinary")),
            ask(database, insert("settled"), uses_reserve=True),
        ]
    ordinary, settled = settle(asked)

    assert (StorageFullError, 1) == (type(ordinary), settled)
    assert ["settled"] == names(database)


class Sharing(RuleBasedStateMachine):
    """Other programs take and give back space while all kinds of writes come."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        directory = Path(self._folder.name)
        self.disk = FakeDisk(directory)
        self.space = self.disk.space(directory)
        self.space.maintain()

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(blocks=st.integers(1, 600))
    def another_program_writes(self, blocks: int) -> None:
        self.disk.used += min(blocks * BLOCK, self.disk.free)

    @rule(blocks=st.integers(1, 600))
    def another_program_deletes(self, blocks: int) -> None:
        self.disk.used -= min(blocks * BLOCK, self.disk.used)

    @rule()
    def the_server_looks_after_it(self) -> None:
        before = self.disk.free
        self.space.maintain()
        assert self.disk.free == before or self.disk.free >= self.disk.reserve - RESERVE
        assert self.disk.reserve == RESERVE or before < 2 * (RESERVE - self.disk.reserve)

    @rule(blocks=st.integers(1, 20))
    def something_ends(self, blocks: int) -> None:
        size = blocks * BLOCK
        has_space = size <= self.disk.free + self.disk.reserve
        before = self.disk.reserve
        try:
            self.space.use_reserve(partial(self.disk.write, size))
        except StorageFullError:
            assert not has_space
            assert before == self.disk.reserve
        else:
            assert has_space

    @rule(blocks=st.integers(1, 20), must_be_free=st.sampled_from([0, MIN_FREE]))
    def something_is_stored(self, blocks: int, must_be_free: int) -> None:
        self.disk.now += 2
        reserve, free = self.disk.reserve, self.disk.free
        must_be_free += RESERVE - reserve
        try:
            if must_be_free >= MIN_FREE:
                self.space.require_for_new_data()
            self.space.require()
            self.disk.write(blocks * BLOCK)
        except StorageFullError:
            assert free < max(must_be_free, blocks * BLOCK)
        else:
            assert free >= must_be_free
        assert reserve == self.disk.reserve

    @invariant()
    def the_reserve_has_its_size_at_most(self) -> None:
        assert RESERVE >= self.disk.reserve


Sharing.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_sharing = Sharing.TestCase
