from __future__ import annotations

import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.api_keys import SCOPES, TOKEN_PREFIX, _new_token, digest
from storage.errors import KeyNameTakenError, KeyNotFoundError
from tests.fakes import START
from tests.store import SECRET

if TYPE_CHECKING:
    from storage.api_keys import ApiKeys, Credentials
    from tests.store import Store

HOUR = 3_600_000


@pytest.fixture
def api_keys(store: Store) -> ApiKeys:
    return store.api_keys


def create(api_keys: ApiKeys, name: str = "alice", *, expires_at: int | None = None) -> Credentials:
    return api_keys.create(
        name, scopes=("images.read",), signing_secret=SECRET, expires_at=expires_at, now=START
    )


def expiry_of(api_keys: ApiKeys, credentials: Credentials) -> int | None:
    found = digest(credentials.token)
    assert found is not None
    return api_keys.grants()[found].expires_at


def test_a_token_grants_what_its_key_may_do(api_keys: ApiKeys) -> None:
    credentials = create(api_keys)
    found = digest(credentials.token)
    assert found is not None
    grant = api_keys.grants()[found]

    assert credentials.id == grant.key_id
    assert frozenset({"images.read"}) == grant.scopes
    assert grant.expires_at is None


@given(st.data())
def test_every_mistyped_character_of_a_token_is_told(data: st.DataObject) -> None:
    token = _new_token()
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(string.printable + "é\u2019\U0001f600\0"))
    typo = token[:place] + other + token[place + 1 :]

    assert (typo == token) == (digest(typo) is not None)


def test_every_single_replacement_in_one_token_is_told() -> None:
    token = _new_token()
    alphabet = string.ascii_letters + string.digits + "-_"
    typos = {
        token[:place] + other + token[place + 1 :]
        for place in range(len(token))
        for other in alphabet
    } - {token}

    assert len(token) * 63 == len(typos)
    assert {None} == {digest(typo) for typo in typos}


@pytest.mark.parametrize(
    "text",
    [
        "",
        TOKEN_PREFIX,
        "x" * 55,
        _new_token()[:-1],
        _new_token() + "0",
        " " + _new_token(),
        _new_token().removeprefix(TOKEN_PREFIX),
        TOKEN_PREFIX + _new_token(),
        _new_token().upper(),
        # Full-width digits have as many characters, and int() would take them.
        TOKEN_PREFIX + "\uff10" * 51,
    ],
)
def test_what_is_no_token_is_told_without_the_database(text: str) -> None:
    assert digest(text) is None


def test_tokens_look_alike_and_are_never_the_same() -> None:
    tokens = {_new_token() for _ in range(100)}

    assert 100 == len(tokens)
    assert {55} == {len(token) for token in tokens}
    assert {TOKEN_PREFIX} == {token[:4] for token in tokens}


def test_the_files_hold_the_digest_and_never_the_token(store: Store) -> None:
    credentials = [create(store.api_keys)]
    credentials.append(
        store.api_keys.rotate("alice", signing_secret=SECRET, overlap=HOUR, now=START)
    )
    folder = store.database.folder
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    everything = b"".join(files.values())

    assert {"picback.db", "picback.db-wal"} < files.keys()
    for made in credentials:
        body = made.token.removeprefix(TOKEN_PREFIX).encode()

        assert (digest(made.token) or b"no token") in everything
        assert body not in everything
        assert body[:43] not in everything


def test_rotating_gives_a_new_token_and_lets_the_old_one_work_a_while(api_keys: ApiKeys) -> None:
    old = create(api_keys)
    new = api_keys.rotate("alice", signing_secret="whsec_new", overlap=HOUR, now=START)

    assert old.id == new.id
    assert old.token != new.token
    assert START + HOUR == expiry_of(api_keys, old)
    assert expiry_of(api_keys, new) is None


def test_rotating_twice_does_not_prolong_the_oldest(api_keys: ApiKeys) -> None:
    oldest = create(api_keys)
    old = api_keys.rotate("alice", signing_secret=SECRET, overlap=HOUR, now=START)
    api_keys.rotate("alice", signing_secret=SECRET, overlap=2 * HOUR, now=START + 1)

    assert START + HOUR == expiry_of(api_keys, oldest)
    assert START + 1 + 2 * HOUR == expiry_of(api_keys, old)


def test_rotating_without_overlap_ends_the_old_token_and_secret_now(api_keys: ApiKeys) -> None:
    old = create(api_keys)
    api_keys.rotate(old.id, signing_secret="whsec_new", overlap=0, now=START)

    assert START == expiry_of(api_keys, old)
    assert ["whsec_new"] == api_keys.signing_secrets(old.id, now=START)


def test_while_secrets_overlap_all_sign_the_newest_first(api_keys: ApiKeys) -> None:
    key_id = create(api_keys).id
    api_keys.rotate("alice", signing_secret="whsec_b", overlap=HOUR, now=START)
    api_keys.rotate("alice", signing_secret="whsec_c", overlap=2 * HOUR, now=START)

    assert ["whsec_c", "whsec_b", SECRET] == api_keys.signing_secrets(key_id, now=START)
    assert ["whsec_c", "whsec_b"] == api_keys.signing_secrets(key_id, now=START + HOUR)
    assert ["whsec_c"] == api_keys.signing_secrets(key_id, now=START + 2 * HOUR)


@pytest.mark.parametrize(
    ("of_key", "of_token", "expected"),
    [
        (None, None, None),
        (HOUR, None, HOUR),
        (None, HOUR, HOUR),
        (HOUR, 2 * HOUR, HOUR),
        (2 * HOUR, HOUR, HOUR),
    ],
)
def test_the_earlier_of_a_keys_and_a_tokens_expiry_counts(
    api_keys: ApiKeys, of_key: int | None, of_token: int | None, expected: int | None
) -> None:
    old = create(api_keys, expires_at=None if of_key is None else START + of_key)
    if of_token is not None:
        api_keys.rotate("alice", signing_secret=SECRET, overlap=of_token, now=START)

    assert (None if expected is None else START + expected) == expiry_of(api_keys, old)


def test_a_revoked_key_grants_nothing_but_still_signs(api_keys: ApiKeys) -> None:
    key_id = create(api_keys).id
    create(api_keys, "bob")
    revoked = api_keys.revoke("alice", now=START + 5)

    assert START + 5 == revoked.revoked_at
    assert ["bob"] == [
        key.name
        for key in api_keys.all()
        if key.id in {grant.key_id for grant in api_keys.grants().values()}
    ]
    assert [SECRET] == api_keys.signing_secrets(key_id, now=START + HOUR)


def test_a_name_is_taken_until_its_key_is_revoked(api_keys: ApiKeys) -> None:
    first = create(api_keys)
    with pytest.raises(KeyNameTakenError):
        create(api_keys)
    api_keys.revoke("alice", now=START)
    second = create(api_keys)

    assert first.id != second.id
    assert 1 == len(api_keys.grants())
    # The name now means the live key.
    assert second.id == api_keys.revoke("alice", now=START).id


def test_a_refused_name_stores_nothing(store: Store) -> None:
    create(store.api_keys)
    with pytest.raises(KeyNameTakenError):
        create(store.api_keys)

    assert (1, 1, 1) == tuple(map(store.count, ("api_key", "api_token", "signing_secret")))


@pytest.mark.parametrize("name", ["nobody", "key_0", "revoked"])
def test_what_is_no_live_key_cannot_be_changed(api_keys: ApiKeys, name: str) -> None:
    create(api_keys, "revoked")
    revoked = api_keys.revoke("revoked", now=START)

    for name_or_id in (name, revoked.id):
        with pytest.raises(KeyNotFoundError):
            api_keys.revoke(name_or_id, now=START)
        with pytest.raises(KeyNotFoundError):
            api_keys.rotate(name_or_id, signing_secret=SECRET, overlap=0, now=START)


def test_keys_are_listed_oldest_first_with_what_operators_need(api_keys: ApiKeys) -> None:
    for number, name in enumerate(("zoe", "adam")):
        api_keys.create(
            name, scopes=SCOPES, signing_secret=SECRET, expires_at=START + 9, now=START + number
        )
    zoe, adam = api_keys.all()
    api_keys.note_use({adam.id: START + 3})

    assert ("zoe", "adam") == (zoe.name, adam.name)
    assert (SCOPES, START, START + 9, None) == (
        zoe.scopes,
        zoe.created_at,
        zoe.expires_at,
        zoe.revoked_at,
    )
    assert [None, START + 3] == [key.last_used_at for key in api_keys.all()]


def test_a_use_of_a_key_that_is_gone_is_no_error(api_keys: ApiKeys) -> None:
    create(api_keys)
    api_keys.note_use({"key_unknown": START})
    api_keys.note_use({})

    assert [None] == [key.last_used_at for key in api_keys.all()]
