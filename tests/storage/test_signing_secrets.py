"""Signing secrets in a real file: what is in its bytes, and who can do what with them."""

from __future__ import annotations

import base64
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.errors import SealError
from storage.sealing import Sealer
from storage.signing_secrets import Sealing
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.api_keys import Credentials

HOUR = 3_600_000
CLEAR = Sealer()
OLD, NEW = Sealer([b"o" * 32]), Sealer([b"n" * 32])
BOTH = Sealer([b"n" * 32, b"o" * 32])
#: With this, a table of secrets has pages with gaps in them, and pages of its own are free.
MANY = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@contextmanager
def served(folder: Path, sealer: Sealer) -> Iterator[ApiKeys]:
    """Open the folder as its server does, which begins by sealing."""
    with closing(Database.own(folder)) as database:
        api_keys = ApiKeys(database, sealer=sealer)
        api_keys.seal_secrets()
        yield api_keys


@contextmanager
def beside(folder: Path, sealer: Sealer) -> Iterator[ApiKeys]:
    """Open the folder as a command does."""
    with closing(Database.beside(folder)) as database:
        yield ApiKeys(database, sealer=sealer)


def secret(number: int) -> str:
    return "whsec_" + base64.b64encode(f"the secret with number {number:09}".encode()).decode()


def create(api_keys: ApiKeys, number: int = 0) -> Credentials:
    return api_keys.create(
        f"key {number}",
        scopes=SCOPES,
        signing_secret=secret(number),
        expires_at=None,
        now=START,
    )


def rotate(api_keys: ApiKeys, number: int, *, to: int) -> None:
    api_keys.rotate(f"key {number}", signing_secret=secret(to), overlap=HOUR, now=START)


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def rows(api_keys: ApiKeys) -> list[Any]:
    """Return all that there is to know about credentials."""
    return [
        api_keys._database.read(f"SELECT * FROM {table} ORDER BY 1")
        for table in ("api_key", "api_token", "signing_secret")
    ]


def seals(api_keys: ApiKeys) -> set[str | None]:
    return {key for (key,) in api_keys._database.read("SELECT sealed_with FROM signing_secret")}


def test_what_is_stored_with_a_key_was_never_in_clear(folder: Path) -> None:
    with served(folder, OLD) as api_keys:
        key_id = create(api_keys, 1).id
        rotate(api_keys, 1, to=2)
        with beside(folder, OLD) as others:
            rotate(others, 1, to=3)
        while_served = everything(folder)

        assert [secret(3), secret(2), secret(1)] == api_keys.signing_secrets(key_id, now=START)
        assert {OLD.current} == seals(api_keys)
    after = everything(folder)

    # Until a checkpoint the rows are in the log: it was read, too.
    assert b"key 1" in while_served
    assert b"key 1" in after
    assert b"whsec_" not in while_served + after


def test_sealing_leaves_nothing_in_clear_in_any_file(folder: Path) -> None:
    with served(folder, CLEAR) as api_keys:
        ids = [create(api_keys, number).id for number in range(MANY)]
        for number in range(0, MANY, 3):
            rotate(api_keys, number, to=MANY + number)
        # As if this version did not do it: pages are given up as they are.
        api_keys._database.write(
            lambda connection: connection.execute("DELETE FROM signing_secret WHERE id % 5 > 1")
        )
        before = {id_: api_keys.signing_secrets(id_, now=START) for id_ in ids}
        tables = _tables(api_keys)
        others = [table[:] for table in rows(api_keys)]
        (given_up,) = api_keys._database.read("PRAGMA freelist_count")[0]
    in_clear = everything(folder)
    with closing(Database.own(folder)) as database:
        api_keys = ApiKeys(database, sealer=OLD)
        sealing = api_keys.seal_secrets()
        while_served = everything(folder)
        after = {id_: api_keys.signing_secrets(id_, now=START) for id_ in ids}

        assert {OLD.current} == seals(api_keys)
        assert tables == _tables(api_keys)
        for table, now in zip(others, rows(api_keys), strict=True):
            assert [row[:2] + row[4:] for row in table] == [row[:2] + row[4:] for row in now]

    assert given_up > 0
    assert MANY < in_clear.count(b"whsec_")
    assert Sealing(changed=len(others[2]), wiped=True) == sealing
    assert 0 == while_served.count(b"whsec_")
    assert 0 == everything(folder).count(b"whsec_")
    assert before == after
    assert MANY / 2 < sum(map(len, after.values()))


def _tables(api_keys: ApiKeys) -> set[tuple[str, str]]:
    return set(api_keys._database.read("SELECT name, sql FROM sqlite_schema"))


def test_sealing_leaves_nothing_in_clear_between_the_rows_of_a_page(folder: Path) -> None:
    with served(folder, CLEAR) as api_keys:
        for number in range(20):
            create(api_keys, number)
        api_keys._database.write(
            lambda connection: connection.execute("DELETE FROM signing_secret WHERE id > 1")
        )
    in_clear = everything(folder)
    with served(folder, OLD):
        while_served = everything(folder)

    assert 10 < in_clear.count(b"whsec_")
    assert 0 == while_served.count(b"whsec_")


def test_a_new_key_leaves_nothing_that_the_old_one_encrypted(folder: Path) -> None:
    with served(folder, CLEAR) as api_keys:
        create(api_keys, 0)
    with served(folder, OLD) as api_keys:  # makes the table anew, at the end of the file
        for number in range(1, 20):
            create(api_keys, number)
        sealed = [row for (row,) in api_keys._database.read("SELECT secret FROM signing_secret")]
        api_keys._database.write(
            lambda connection: connection.execute("DELETE FROM signing_secret WHERE id > 1")
        )
    by_old = everything(folder)
    with served(folder, BOTH):
        by_new = everything(folder)

    assert 10 < sum(each in by_old for each in sealed)
    assert 0 == sum(each in by_new for each in sealed)


def test_what_is_sealed_is_left_alone_at_the_next_start(folder: Path) -> None:
    with served(folder, OLD) as api_keys:
        create(api_keys)
        before = rows(api_keys)
        again = api_keys.seal_secrets()

        assert Sealing(changed=0, wiped=True) == again
        assert before == rows(api_keys)


def test_without_a_key_secrets_stay_in_clear_and_work(folder: Path) -> None:
    with served(folder, CLEAR) as api_keys:
        key_id = create(api_keys).id
        sealing = api_keys.seal_secrets()

        assert Sealing(changed=0, wiped=True) == sealing
        assert {None} == seals(api_keys)
        assert [secret(0)] == api_keys.signing_secrets(key_id, now=START)
    assert secret(0).encode() in everything(folder)


def test_a_new_first_key_encrypts_everything_anew_and_the_old_one_can_go(folder: Path) -> None:
    with served(folder, OLD) as api_keys:
        key_id = create(api_keys).id
        ((old_bytes,),) = api_keys._database.read("SELECT secret FROM signing_secret")
    found_before = everything(folder).count(old_bytes)
    with served(folder, BOTH) as api_keys:
        found_after = everything(folder).count(old_bytes)

        assert {NEW.current} == seals(api_keys)
    with served(folder, NEW) as api_keys:
        assert [secret(0)] == api_keys.signing_secrets(key_id, now=START)

    assert 1 == found_before
    assert 0 == found_after


@pytest.mark.parametrize("sealer", [CLEAR, NEW])
def test_without_the_key_nothing_starts_and_nothing_changes(folder: Path, sealer: Sealer) -> None:
    with served(folder, OLD) as api_keys:
        create(api_keys)
        before = rows(api_keys)
    with closing(Database.own(folder)) as database:
        api_keys = ApiKeys(database, sealer=sealer)
        with pytest.raises(SealError, match=f"encrypted with key {OLD.current}"):
            api_keys.seal_secrets()

        assert before == rows(api_keys)


@pytest.mark.parametrize("sealer", [CLEAR, NEW])
def test_beside_a_server_nothing_is_stored_that_it_cannot_decrypt(
    folder: Path, sealer: Sealer
) -> None:
    with served(folder, OLD) as api_keys:
        create(api_keys, 1)
        before = rows(api_keys)
        with beside(folder, sealer) as others:
            with pytest.raises(SealError, match=f"encrypted with key {OLD.current}"):
                create(others, 2)
            with pytest.raises(SealError, match=f"encrypted with key {OLD.current}"):
                rotate(others, 1, to=2)

        assert before == rows(api_keys)


def test_beside_a_server_in_clear_nothing_is_encrypted(folder: Path) -> None:
    with served(folder, CLEAR) as api_keys:
        create(api_keys, 1)
        with (
            beside(folder, OLD) as others,
            pytest.raises(SealError, match="in clear: start picback serve with the secrets key"),
        ):
            create(others, 2)

        assert ["key 1"] == [key.name for key in api_keys.all()]


def test_beside_a_server_its_key_is_used_until_it_starts_with_a_newer_one(folder: Path) -> None:
    with served(folder, OLD) as api_keys:
        create(api_keys, 1)
        with beside(folder, BOTH) as others:
            key_id = create(others, 2).id

        assert [secret(2)] == api_keys.signing_secrets(key_id, now=START)
        assert {OLD.current} == seals(api_keys)


@pytest.mark.parametrize("sealer", [CLEAR, OLD])
def test_the_first_secret_decides_in_a_folder_without_any(folder: Path, sealer: Sealer) -> None:
    with served(folder, CLEAR):
        pass
    with beside(folder, sealer) as others:
        create(others)
        assert {sealer.current} == seals(others)
    with served(folder, OLD) as api_keys:
        assert {OLD.current} == seals(api_keys)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE signing_secret SET secret = zeroblob(90) WHERE id = 2",
        "UPDATE signing_secret SET secret = x'' WHERE id = 2",
        # Another key's secret in its place.
        "UPDATE signing_secret AS s SET secret = (SELECT secret FROM signing_secret WHERE id = 1)",
    ],
)
def test_a_secret_that_was_tampered_with_is_told_at_the_start(folder: Path, damage: str) -> None:
    with served(folder, OLD) as api_keys:
        create(api_keys, 1)
        harmed = create(api_keys, 2).id
        api_keys._database.write(lambda connection: connection.execute(damage).fetchall())
        before = rows(api_keys)

    for sealer in (OLD, BOTH):
        with closing(Database.own(folder)) as database:
            api_keys = ApiKeys(database, sealer=sealer)
            with pytest.raises(SealError, match=f"a signing secret of {harmed} was changed"):
                api_keys.seal_secrets()

            assert before == rows(api_keys)


def test_what_a_killed_process_or_a_reader_kept_in_the_log_is_wiped_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.database._BUSY_TIMEOUT", 0.0)
    with closing(Database.own(folder)) as database:
        create(ApiKeys(database))
        reader = database._readers.take()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM setting").fetchall()
        hindered = ApiKeys(database, sealer=OLD).seal_secrets()
        log_then = (folder / "picback.db-wal").read_bytes()
        reader.execute("COMMIT")
        database._readers.give_back(reader)
        again = ApiKeys(database, sealer=OLD).seal_secrets()

        assert Sealing(changed=1, wiped=False) == hindered
        assert secret(0).encode() in log_then
        assert Sealing(changed=0, wiped=True) == again
        assert secret(0).encode() not in everything(folder)
