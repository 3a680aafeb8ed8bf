"""What a data folder may hold, what is refused in it, and who may read it."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storage import driver, schema
from storage.database import Database
from storage.errors import StorageError, UnusableDatabaseError
from tests.storage.writing import insert, names

if TYPE_CHECKING:
    from collections.abc import Callable


def test_only_the_owner_of_the_files_can_read_them(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        database = Database.own(tmp_path / "data")
        database.write(insert("a"))
        modes = {path.name: path.stat().st_mode & 0o777 for path in database.folder.iterdir()}
        folder = database.folder.stat().st_mode & 0o777
        database.close()
    finally:
        os.umask(old)

    assert 0o700 == folder
    assert dict.fromkeys(("lock", "picback.db", "picback.db-wal", "picback.db-shm"), 0o600) == modes


def test_a_file_that_others_can_read_is_closed_to_them_at_start(tmp_path: Path) -> None:
    Database.own(tmp_path).close()
    file = tmp_path / "picback.db"
    file.chmod(0o644)
    Database.own(tmp_path).close()

    assert 0o600 == file.stat().st_mode & 0o777


@pytest.mark.parametrize("before", [None, b""], ids=["no file", "an empty file"])
def test_a_database_is_made_from_nothing(tmp_path: Path, before: bytes | None) -> None:
    if before is not None:
        (tmp_path / "picback.db").write_bytes(before)
    with closing(Database.own(tmp_path)) as database:
        header = [
            database.read(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version")
        ]

        assert [schema.APPLICATION_ID, schema.version()] == header
        assert 1 == database.write(insert("a"))


def test_opening_again_changes_neither_schema_nor_rows(tmp_path: Path) -> None:
    def schema_of(database: Database) -> list[Any]:
        return database.read("SELECT type, name, sql FROM sqlite_schema ORDER BY name")

    with closing(Database.own(tmp_path)) as database:
        database.write(insert("a"))
        made = schema_of(database)
    with closing(Database.own(tmp_path)) as database:
        assert made == schema_of(database)
        assert ["a"] == names(database)


def test_a_start_that_died_before_the_version_was_written_is_finished(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path)) as database:
        database.write(insert("a"))
        database.write(lambda connection: connection.execute("PRAGMA user_version=0").fetchall())
    with closing(Database.own(tmp_path)) as database:
        assert schema.version() == database.read("PRAGMA user_version")[0][0]
        assert ["a"] == names(database)


def _foreign(file: Path) -> None:
    with closing(driver.connect(file)) as other:
        other.execute("CREATE TABLE mine (a)")
        other.commit()


def _foreign_of_the_same_version(file: Path) -> None:
    _foreign(file)
    with closing(driver.connect(file)) as other:
        other.execute(f"PRAGMA user_version={schema.version()}")


def _newer(file: Path) -> None:
    Database.own(file.parent).close()
    with closing(driver.connect(file)) as other:
        other.execute(f"PRAGMA user_version={schema.version() + 1}")


def _no_database(file: Path) -> None:
    file.write_bytes(b"just some text, " * 1000)


@pytest.mark.parametrize(
    "make", [_foreign, _foreign_of_the_same_version, _newer, _no_database], ids=lambda f: f.__name__
)
def test_another_kind_of_file_is_refused_and_left_as_it_was(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    file = tmp_path / "picback.db"
    make(file)
    before = file.read_bytes()

    for open_ in (Database.own, Database.own, Database.beside):  # twice: the lock was given back
        with pytest.raises(UnusableDatabaseError):
            open_(tmp_path)
    assert before == file.read_bytes()


def _half_migrated_by_hand(file: Path) -> None:
    Database.own(file.parent).close()
    with closing(driver.connect(file)) as other:
        other.execute("DROP TABLE _sqlite_migrations")
        other.commit()


@pytest.mark.parametrize(
    ("make", "open_"),
    [
        (_foreign, Database.own),
        (_newer, Database.own),
        (_no_database, Database.own),
        (_half_migrated_by_hand, Database.own),
        (_foreign, Database.beside),
        (_no_database, Database.beside),
    ],
)
def test_a_refused_file_is_not_kept_open(
    tmp_path: Path, make: Callable[[Path], None], open_: Callable[[Path], Database]
) -> None:
    make(tmp_path / "picback.db")
    with pytest.raises(StorageError) as refused:
        open_(tmp_path)

    assert 0 == _times_open(tmp_path / "picback.db")
    assert refused.value.__traceback__ is not None  # which keeps all that was not closed


def _times_open(file: Path) -> int:
    """Return how often this process has *file* open."""
    found = 0
    for entry in Path("/dev/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            found += os.path.samestat(os.fstat(int(entry.name)), file.stat())
    return found


def test_a_file_in_use_is_seen_to_be_open(database: Database) -> None:
    assert _times_open(database.folder / "picback.db") > 0


def test_a_sqlite_that_can_corrupt_databases_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "sqlite_version_info", (3, 51, 2))

    with pytest.raises(UnusableDatabaseError):
        Database.own(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"a file where the folder should be")

    with pytest.raises(StorageError, match="data: File exists"):
        Database.own(tmp_path / "data")
