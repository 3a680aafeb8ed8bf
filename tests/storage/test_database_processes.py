"""Several processes at one data folder: one server, and commands beside it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from storage import driver
from storage.database import Database
from storage.errors import FolderInUseError, StorageError, UnusableDatabaseError
from storage.queries import Queries
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SERVER = """
import sys, pathlib
from storage.database import Database
from tests.store import Store
store = Store(Database.own(pathlib.Path(sys.argv[1])))
store.key("made by another process")
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def server(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Own *folder* in another process, with one API key; it dies by SIGKILL at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


def key_names(database: Database) -> list[str]:
    return [key.name for key in Store(database).api_keys.all()]


def test_a_second_server_of_a_folder_is_refused(database: Database) -> None:
    with pytest.raises(FolderInUseError, match="another picback serve owns"):
        Database.own(database.folder)


def test_a_server_in_another_process_counts_and_its_death_frees_the_folder(tmp_path: Path) -> None:
    with server(tmp_path) as process:
        with pytest.raises(FolderInUseError):
            Database.own(tmp_path)
        process.kill()
        process.wait()

        with closing(Database.own(tmp_path)) as database:
            assert ["made by another process"] == key_names(database)


def test_a_closed_database_frees_its_folder(tmp_path: Path) -> None:
    Database.own(tmp_path).close()
    Database.own(tmp_path).close()

    with closing(Database.beside(tmp_path)) as beside:
        assert not beside.is_served()


def test_a_lock_that_cannot_be_opened_is_told_by_name(tmp_path: Path) -> None:
    Database.own(tmp_path).close()
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()

    beside = Database.beside(tmp_path)
    with pytest.raises(StorageError, match="lock: Is a directory"):
        beside.is_served()
    beside.close()
    with pytest.raises(StorageError, match="lock: Is a directory"):
        Database.own(tmp_path)


def test_a_command_reads_and_writes_beside_a_server(tmp_path: Path) -> None:
    with server(tmp_path), closing(Database.beside(tmp_path)) as beside:
        Store(beside).key("made beside it")

        assert beside.is_served()
        assert {"made by another process", "made beside it"} == set(key_names(beside))


def test_what_is_written_beside_a_server_is_seen_by_it(store: Store) -> None:
    with closing(Database.beside(store.database.folder)) as beside:
        Store(beside).key("made beside it")
        (made,) = store.api_keys.all()

    assert "made beside it" == made.name


def test_a_command_beside_a_server_leaves_the_checkpoint_to_it(store: Store) -> None:
    folder = store.database.folder
    with closing(Database.beside(folder)) as beside:
        beside.write(
            lambda connection: (
                connection.execute(
                    "INSERT INTO setting (name, value) VALUES ('big', zeroblob(20000000))"
                ).rowcount
            )
        )

    # SQLite checkpoints by itself from 1000 pages of 16 KiB on.
    assert (folder / "picback.db-wal").stat().st_size > 20_000_000
    assert (folder / "picback.db").stat().st_size < 1_000_000


def test_a_command_works_while_no_server_runs(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path)) as database:
        Store(database).key("left behind")
    with closing(Database.beside(tmp_path)) as beside:
        before = key_names(beside)
        Store(beside).key("made meanwhile")

        assert not beside.is_served()
        assert ["left behind"] == before
        assert {"left behind", "made meanwhile"} == set(key_names(beside))
    with closing(Database.own(tmp_path)) as database:
        assert {"left behind", "made meanwhile"} == set(key_names(database))


def test_a_command_reads_what_a_killed_server_had_not_yet_checkpointed(tmp_path: Path) -> None:
    with server(tmp_path) as process:
        process.kill()
        process.wait()
        log = (tmp_path / "picback.db-wal").stat().st_size

        assert log > 0
        with closing(Database.beside(tmp_path)) as beside:
            assert ["made by another process"] == key_names(beside)


def test_a_command_refuses_a_folder_without_a_database(tmp_path: Path) -> None:
    with pytest.raises(UnusableDatabaseError, match="holds no picback database"):
        Database.beside(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_command_refuses_a_database_that_its_server_has_yet_to_migrate(tmp_path: Path) -> None:
    Database.own(tmp_path).close()
    with closing(driver.connect(tmp_path / "picback.db")) as older:
        older.execute("PRAGMA user_version=1")

    with pytest.raises(UnusableDatabaseError, match="start its serve first"):
        Database.beside(tmp_path)


def test_an_operation_that_raises_beside_a_server_undoes_itself(store: Store) -> None:
    key_id = store.key()
    with closing(Database.beside(store.database.folder)) as beside:
        queries = Queries(beside)
        with pytest.raises(ValueError, match="surrogates"):
            queries.submit(
                key_id=key_id,
                text="\udc80",
                callback_url="",
                destination="http://receiver:80",
                give_up_after=None,
                request=None,
                now=0,
            )

    assert 0 == store.count("query")
