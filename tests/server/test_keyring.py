from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatcher import new_secret
from server.keyring import Keyring
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.errors import StorageError
from tests.fakes import START, FakeClock
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def api_keys(database: Database) -> ApiKeys:
    return ApiKeys(database)


@pytest.fixture
def keyring(api_keys: ApiKeys, clock: FakeClock) -> Iterator[Keyring]:
    keyring = Keyring(api_keys, clock=clock)
    keyring.start()
    yield keyring
    keyring.stop()


def _create(api_keys: ApiKeys, name: str = "test", expires_at: int | None = None) -> str:
    return api_keys.create(
        name,
        scopes=SCOPES[:1],
        signing_secret=new_secret(),
        expires_at=expires_at,
        now=START,
    ).token


def test_a_key_is_known_by_its_token_only(api_keys: ApiKeys, keyring: Keyring) -> None:
    token = _create(api_keys)
    keyring.refresh()

    grant = keyring.look_up(token)

    assert grant is not None
    assert frozenset(SCOPES[:1]) == grant.scopes
    for wrong in ("", "pbk_", token[:-1], token + "0", token.upper(), "é" * 55, f" {token}"):
        assert keyring.look_up(wrong) is None


def test_every_typo_of_one_character_is_noticed_without_a_look_up(
    api_keys: ApiKeys, keyring: Keyring
) -> None:
    token = _create(api_keys)
    keyring.refresh()

    for index, character in enumerate(token):
        other = "A" if character != "A" else "B"
        assert keyring.look_up(token[:index] + other + token[index + 1 :]) is None


def test_an_expired_key_is_refused_from_that_millisecond_on(
    api_keys: ApiKeys, keyring: Keyring, clock: FakeClock
) -> None:
    token = _create(api_keys, expires_at=START + 1000)
    keyring.refresh()

    clock.now = START + 999
    before = keyring.look_up(token)
    clock.now = START + 1000
    after = keyring.look_up(token)

    assert before is not None
    assert after is None


def test_both_tokens_of_a_rotated_key_work_until_the_overlap_is_over(
    api_keys: ApiKeys, keyring: Keyring, clock: FakeClock
) -> None:
    old = _create(api_keys)
    new = api_keys.rotate("test", signing_secret=new_secret(), overlap=60_000, now=START).token
    keyring.refresh()

    during = [keyring.look_up(token) is not None for token in (old, new)]
    clock.advance(60)
    after = [keyring.look_up(token) is not None for token in (old, new)]

    assert [True, True] == during
    assert [False, True] == after


@pytest.fixture
def beside(database: Database) -> Iterator[ApiKeys]:
    """The keys as a command opens them, next to the server."""
    other = Database.beside(database.folder)
    yield ApiKeys(other)
    other.close()


def test_a_key_made_revoked_or_rotated_beside_the_server_is_noticed(
    beside: ApiKeys, keyring: Keyring
) -> None:
    token = _create(beside)
    wait_until(lambda: keyring.look_up(token) is not None)

    rotated = beside.rotate("test", signing_secret=new_secret(), overlap=0, now=START).token
    wait_until(lambda: keyring.look_up(rotated) is not None)
    assert keyring.look_up(token) is None

    beside.revoke("test", now=START)
    wait_until(lambda: keyring.look_up(rotated) is None)


def test_the_keys_stay_as_they_were_while_the_database_cannot_be_read(
    api_keys: ApiKeys, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    token = _create(api_keys)
    failing = _Failing(api_keys)
    keyring = Keyring(failing, clock=clock)  # type: ignore[arg-type] # does what it is asked
    keyring.start()

    failing.fails = True
    wait_until(lambda: "keyring.stale" in caplog.messages)
    still = keyring.look_up(token)
    revoke: Callable[[], object] = lambda: api_keys.revoke("test", now=START)  # noqa: E731
    revoke()
    failing.fails = False
    wait_until(lambda: keyring.look_up(token) is None)
    keyring.stop()

    assert still is not None


class _Failing:
    """Keys whose database sometimes does not answer."""

    def __init__(self, api_keys: ApiKeys) -> None:
        self.fails = False
        self._api_keys = api_keys

    def grants(self) -> object:
        if self.fails:
            msg = "no answer"
            raise StorageError(msg)
        return self._api_keys.grants()

    def note_use(self, _: object) -> None:
        msg = "the disk is full"
        raise StorageError(msg)


def test_the_last_use_is_written_down_when_the_server_stops(
    api_keys: ApiKeys, clock: FakeClock
) -> None:
    token = _create(api_keys)
    _create(api_keys, "unused")
    keyring = Keyring(api_keys, clock=clock)
    keyring.start()
    clock.advance(5)
    keyring.look_up(token)

    keyring.stop()

    assert {"test": START + 5000, "unused": None} == {
        key.name: key.last_used_at for key in api_keys.all()
    }


def test_a_full_disk_does_not_keep_the_server_from_stopping(
    api_keys: ApiKeys, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    token = _create(api_keys)
    keyring = Keyring(_Failing(api_keys), clock=clock)  # type: ignore[arg-type] # does what it is asked
    keyring.start()
    keyring.look_up(token)

    keyring.stop()

    assert "keyring.use_not_noted" in caplog.messages
