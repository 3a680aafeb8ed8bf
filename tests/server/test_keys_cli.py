"""`picback keys`, beside a running server and without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner

from picback.v1 import image_service_pb2 as pb
from server.cli import main
from storage.api_keys import DEFAULT_SCOPES
from storage.database import Database
from tests.receiver import Receiver
from tests.server.refusals import refused
from tests.server.serving import first_key, serving, stub_of

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder that no server owns now."""
    Database.own(tmp_path / "data").close()
    return tmp_path / "data"


def _keys(folder: Path, *arguments: str, **environment: str) -> Result:
    command = ["keys", *arguments]
    return CliRunner().invoke(main, command, env={"PICBACK_DATA": str(folder), **environment})


def _json(folder: Path, *arguments: str, **environment: str) -> Any:
    result = _keys(folder, *arguments, "--json", **environment)
    assert 0 == result.exit_code, result.output
    return json.loads(result.stdout)


def _listed(folder: Path) -> list[Any]:
    result = _keys(folder, "list", "--json")
    assert 0 == result.exit_code
    return [json.loads(line) for line in result.stdout.splitlines()]


def _can(stub: Any, key: str) -> bool:
    call = stub.ListImages.future(pb.ListImagesRequest(), metadata=(("x-api-key", key),))
    return bool(call.code() == grpc.StatusCode.OK)


def test_a_key_works_as_soon_as_the_command_has_printed_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as app, stub_of(app.address) as stub:
        created = _json(folder, "create", "alice")
        worked = _can(stub, created["key"])
        rotated = _json(folder, "rotate", "alice", "--overlap-hours", "0")
        after_rotation = [_can(stub, each["key"]) for each in (created, rotated)]
        revoked = _json(folder, "revoke", "alice")
        after_revocation = _can(stub, rotated["key"])

    assert ["id", "key", "signing_secret"] == list(created) == list(rotated)
    assert worked
    assert [False, True] == after_rotation
    assert {"id": created["id"], "name": "alice"} == revoked
    assert not after_revocation


def test_old_and_new_token_work_side_by_side_after_a_rotation(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as app, stub_of(app.address) as stub:
        old = _json(folder, "create", "alice")
        new = _json(folder, "rotate", old["id"])

        both = [_can(stub, each["key"]) for each in (old, new)]

    assert old["id"] == new["id"]
    assert [True, True] == both


def test_callbacks_are_signed_with_both_secrets_while_a_rotation_overlaps(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with (
        Receiver() as receiver,
        serving(folder, allow_callback=(receiver.address,)) as app,
        stub_of(app.address) as stub,
    ):
        old = _json(folder, "create", "alice")
        new = _json(folder, "rotate", "alice")
        stub.SubmitQuery(
            pb.SubmitQueryRequest(text="a dog", callback_url=receiver.url),
            metadata=(("x-api-key", new["key"]),),
        )
        (request,) = receiver.wait_for(1)

    request.verify(old["signing_secret"])
    request.verify(new["signing_secret"])
    assert 2 == len(request.headers["webhook-signature"].split())


def test_a_key_can_do_what_its_scopes_say(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as app, stub_of(app.address) as stub:
        by_option = _json(folder, "create", "a", "--scope", "images.write")
        by_variable = _json(folder, "create", "b", PICBACK_SCOPE="images.write queries.read")
        default = _json(folder, "create", "c")
        _json(folder, "create", "d", "--scope", "queries.read", "--scope", "queries.all")

        allowed = [_can(stub, each["key"]) for each in (by_option, by_variable, default)]

    assert [False, False, True] == allowed
    assert [
        ["images.write"],
        ["images.write", "queries.read"],
        list(DEFAULT_SCOPES),
        ["queries.read", "queries.all"],
    ] == [key["scopes"] for key in _listed(folder)]


def test_keys_are_made_and_ended_without_a_server(folder: Path) -> None:
    created = _json(folder, "create", "alice")
    with serving(folder) as app, stub_of(app.address) as stub:
        worked = _can(stub, created["key"])
    _json(folder, "revoke", created["id"])
    with serving(folder) as app, stub_of(app.address) as stub:
        refusal = refused(
            lambda: stub.ListImages(
                pb.ListImagesRequest(), metadata=(("x-api-key", created["key"]),)
            )
        )

    assert worked
    assert "API_KEY_INVALID" == refusal.reason


def test_a_list_tells_all_but_the_secrets(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder) as app, stub_of(app.address) as stub:
        stub.ListImages(pb.ListImagesRequest(), metadata=first_key(app))
        alice = _json(folder, "create", "alice", "--expires-in-days", "30")
        bob = _json(folder, "create", "bob", "--scope", "images.read")
        _json(folder, "revoke", "bob")
    text = _keys(folder, "list").stdout
    listed = {key["name"]: key for key in _listed(folder)}

    assert ["default", "alice", "bob"] == list(listed)
    assert listed["default"]["last_use_time"]
    assert listed["alice"]["last_use_time"] is None
    assert listed["alice"]["expire_time"] > listed["alice"]["create_time"]
    assert listed["bob"]["revoke_time"]
    rows = [line.split() for line in text.splitlines()]
    assert ["default", "alice", "bob"] == [row[0] for row in rows[1:]]
    assert "active" in rows[1]
    assert "until" in rows[2]
    assert "revoked" in rows[3]
    assert "images.read" == rows[3][-1]
    for key in (alice, bob):
        assert key["id"] in text
        assert key["key"] not in text + json.dumps(listed)
        assert key["signing_secret"] not in text + json.dumps(listed)


def test_a_name_is_free_again_when_its_key_is_revoked(folder: Path) -> None:
    first = _json(folder, "create", "alice")
    _json(folder, "revoke", "alice")

    second = _json(folder, "create", "alice")

    assert first["id"] != second["id"]
    assert ["alice", "alice"] == [key["name"] for key in _listed(folder)]


def test_people_are_shown_the_key_with_a_warning(folder: Path) -> None:
    result = _keys(folder, "create", "alice")

    assert 0 == result.exit_code
    facts = {line.rpartition(" ")[2] for line in result.stdout.splitlines()[:3]}
    assert {"key_", "pbk_", "whse"} == {fact[:4] for fact in facts}
    assert "not shown again" in result.stdout


@pytest.mark.parametrize("name", ["[/b]", "[red]x[/red]", "%s", "{}", "é🐶", "a" * 100])
def test_a_list_survives_any_name(folder: Path, name: str) -> None:
    created = _json(folder, "create", name)

    result = _keys(folder, "list")

    assert 0 == result.exit_code
    assert f"{name}  " in result.stdout
    assert created["id"] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rotate", "nobody"], "there is no key 'nobody', or it is revoked"),
        (["revoke", "nobody"], "there is no key 'nobody', or it is revoked"),
        (["revoke", "gone"], "there is no key 'gone', or it is revoked"),
        (["rotate", "gone"], "there is no key 'gone', or it is revoked"),
        (["create", "taken"], "there is a key named 'taken' already"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    folder: Path, arguments: list[str], message: str
) -> None:
    _json(folder, "create", "taken")
    _json(folder, "create", "gone")
    _json(folder, "revoke", "gone")
    before = _listed(folder)

    result = _keys(folder, *arguments)

    assert 1 == result.exit_code
    assert f"Error: {message}\n" == result.stderr
    assert not result.stdout
    assert before == _listed(folder)


@pytest.mark.parametrize("command", [["create", "x"], ["list"], ["rotate", "x"], ["revoke", "x"]])
def test_a_folder_without_a_database_is_told_and_left_as_it_is(
    tmp_path: Path, command: list[str]
) -> None:
    result = _keys(tmp_path / "nothing", *command)

    assert 1 == result.exit_code
    assert "nothing holds no picback database; picback serve makes one" in result.stderr
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "picback.db").write_bytes(b"a diary, not a database\n" * 1000)

    result = _keys(tmp_path, "list")

    assert 1 == result.exit_code
    assert result.stderr.startswith("Error: ")
    assert 1 == len(result.stderr.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ["create"],
        ["create", ""],
        ["create", " "],
        ["create", "a\nb"],
        ["create", "\x1b[2J"],
        ["create", "a" * 101],
        ["create", "key_00000000000000000000000000"],  # which another key may have as its id
        ["create", "x", "--scope", "everything"],
        ["create", "x", "--expires-in-days", "0"],
        ["create", "x", "--expires-in-days", "36501"],
        ["rotate", "x", "--overlap-hours", "-1"],
        ["rotate", "x", "--overlap-hours", "8761"],
        ["revoke"],
        ["list", "x"],
        ["delete", "x"],
    ],
)
def test_a_malformed_command_line_is_told_by_usage(folder: Path, arguments: list[str]) -> None:
    result = _keys(folder, *arguments)

    assert 2 == result.exit_code
    assert "Error: " in result.stderr
    assert not _listed(folder)
