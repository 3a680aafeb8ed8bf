"""The driver beneath storage and sqlite-utils, and that no other SQLite library is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storage import driver, sqlite_toolkit
from storage.database import Database
from storage.errors import StorageBusyError, StorageError
from tests.server.serving import serve_process

_PATIENCE = 30.0
#: Reads until the test lets it: `hold` is a function that SQL calls once.
_LONG_READ = "SELECT hold()"


def loaded_sqlite_libraries(pid: int) -> set[str]:
    """Return the files of SQLite that a process has mapped: libraries and Python's modules."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return {
        Path(file).name
        for file in files
        if ("sqlite" in Path(file).name or "apsw" in file) and ".so" in Path(file).name
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_loads_one_sqlite_library(tmp_path: Path) -> None:
    with serve_process(tmp_path / "data") as served:
        loaded = loaded_sqlite_libraries(served.process.pid)

    assert 1 == len(loaded), loaded
    assert next(iter(loaded)).startswith("__init__.")  # APSW's extension module


@pytest.mark.parametrize("module", ["server.cli", "callers.queries"])
def test_no_command_loads_the_standard_librarys_sqlite(module: str) -> None:
    script = f"import sys, {module}; print('_sqlite3' in sys.modules, 'sqlite3' in sys.modules)"

    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert "False False" == result.stdout.strip()


def test_importing_sqlite_utils_leaves_the_standard_librarys_module_to_others() -> None:
    script = "import storage.sqlite_toolkit, sqlite3; print(sqlite3.__file__)"

    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert os.path.join("sqlite3", "__init__.py") in result.stdout  # noqa: PTH118 - part of a path


def test_sqlite_utils_reads_writes_and_alters_through_the_driver(tmp_path: Path) -> None:
    connection = driver.connect(tmp_path / "a.db")
    connection.cursor_factory = driver.FetchedCursor
    with closing(connection):
        database = sqlite_toolkit.Database(connection)  # type: ignore[arg-type] # as storage does
        table: Any = database["dog"]

        table.insert({"id": 1, "name": "Rex"}, pk="id")
        table.insert({"id": 2, "name": "Ada", "age": 7}, alter=True)
        with database.atomic():
            table.upsert({"id": 1, "name": "Max"}, pk="id")

        assert [
            {"id": 1, "name": "Max", "age": None},
            {"id": 2, "name": "Ada", "age": 7},
        ] == list(table.rows)
        assert [] == list(table.rows_where("age > 100"))
        assert ["name", "age"] == list(next(database.query("SELECT name, age FROM dog")))


@pytest.mark.parametrize("owner", ["server", "command"])
def test_closing_waits_for_a_thread_that_reads_and_gives_up_the_lock(
    tmp_path: Path, owner: str
) -> None:
    Database.own(tmp_path).close()
    database = Database.own(tmp_path) if owner == "server" else Database.beside(tmp_path)
    reads, may_end = threading.Event(), threading.Event()
    rows: list[Any] = []

    def hold() -> int:
        reads.set()
        may_end.wait(_PATIENCE)
        return 7

    reader = database._readers.take()
    reader.create_scalar_function("hold", hold, 0)
    database._readers.give_back(reader)
    thread = threading.Thread(target=lambda: rows.extend(database.read(_LONG_READ)))
    thread.start()
    assert reads.wait(_PATIENCE)
    closing_thread = threading.Thread(target=database.close)
    closing_thread.start()
    may_end.set()
    closing_thread.join(_PATIENCE)
    thread.join(_PATIENCE)

    assert [(7,)] == rows
    with pytest.raises(StorageBusyError):
        database.read("SELECT 1")
    Database.own(tmp_path).close()  # the lock is free


def test_the_lock_is_given_up_even_if_a_connection_cannot_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database.own(tmp_path)
    real_close = database._readers.close

    def fail() -> None:
        real_close()
        raise driver.OperationalError

    monkeypatch.setattr(database._readers, "close", fail)
    with pytest.raises(driver.OperationalError):
        database.close()

    Database.own(tmp_path).close()


def test_an_error_of_the_drivers_own_is_a_storage_error(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path)) as database, pytest.raises(StorageError):
        database.read("SELECT ?, ?", (1,))  # too few values


def test_temporary_data_stays_in_memory(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path)) as database:
        in_memory = [(2,)]

        assert in_memory == database.read("PRAGMA temp_store")
        assert in_memory == database.write(
            lambda connection: connection.execute("PRAGMA temp_store").fetchall()
        )
