"""Signing secrets encrypted at rest, as operators and receivers see it."""

from __future__ import annotations

import base64
import json
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from picback.v1 import image_service_pb2 as pb
from server.cli import main
from storage.api_keys import SCOPES, ApiKeys
from storage.database import Database
from storage.sealing import Sealer
from tests.fakes import START
from tests.receiver import Receiver
from tests.server.serving import first_key, serve_process, serving, stub_of

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

OLD_KEY, NEW_KEY = b"o" * 32, b"n" * 32
#: Its bytes occur nowhere by chance.
SECRET = "whsec_" + base64.b64encode(b"the bytes of the first secret").decode()


def key_file(path: Path, key: bytes) -> str:
    path.write_bytes(base64.b64encode(key))
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def encrypted(tmp_path: Path, folder: Path) -> dict[str, str]:
    """Make a data folder with one encrypted secret; return the variables that name all."""
    with closing(Database.own(folder)) as database:
        ApiKeys(database, sealer=Sealer([OLD_KEY])).create(
            "default", scopes=SCOPES, signing_secret=SECRET, expires_at=None, now=START
        )
    path = key_file(tmp_path / "keys", OLD_KEY)
    return {"PICBACK_DATA": str(folder), "PICBACK_SECRETS_KEY_FILE": path}


def keys(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], env=environment)


def submit(app: Any, receiver: Receiver, *metadata: tuple[str, str]) -> None:
    """Have the next callback delivered."""
    seen = len(receiver.requests)
    with stub_of(app.address) as stub:
        stub.SubmitQuery(
            pb.SubmitQueryRequest(text="a dog", callback_url=receiver.url), metadata=metadata
        )
        receiver.wait_for(seen + 1)


def in_database(folder: Path, secret: str) -> bool:
    """Tell whether the secret is in any file of the database, as people see it or decoded."""
    forms = (secret.encode(), base64.b64decode(secret.removeprefix("whsec_")))
    content = b"".join(path.read_bytes() for path in folder.glob("picback.db*"))
    return any(form in content for form in forms)


def test_receivers_notice_nothing_of_encryption_nor_of_a_new_key(folder: Path) -> None:
    shown = []
    with Receiver() as receiver:
        with serving(folder, allow_callback=(receiver.address,)) as app:
            metadata = first_key(app)
            (key_id,) = (key.id for key in app.api_keys.all())
            (secret,) = app.api_keys.signing_secrets(key_id, now=START)
            submit(app, receiver, *metadata)
            shown.append(in_database(folder, secret))
        for sealer in (Sealer([OLD_KEY]), Sealer([NEW_KEY, OLD_KEY]), Sealer([NEW_KEY])):
            with serving(folder, allow_callback=(receiver.address,), sealer=sealer) as app:
                submit(app, receiver, *metadata)
                shown.append(in_database(folder, secret))

    assert 4 == len(receiver.requests)
    for request in receiver.requests:
        request.verify(secret)
    assert [True, False, False, False] == shown


def test_a_secret_rotated_beside_a_server_overlaps_and_is_never_in_clear(
    folder: Path, encrypted: dict[str, str]
) -> None:
    sealer = Sealer([OLD_KEY])
    with (
        Receiver() as receiver,
        serving(folder, allow_callback=(receiver.address,), sealer=sealer) as app,
    ):
        rotated = json.loads(keys("rotate", "default", "--json", **encrypted).stdout)
        submit(app, receiver, ("x-api-key", rotated["key"]))
        (request,) = receiver.requests
        secrets = (SECRET, rotated["signing_secret"])
        shown = [in_database(folder, secret) for secret in secrets]

    request.verify(*secrets)
    assert 2 == len(request.headers["webhook-signature"].split())
    assert [False, False] == shown


def test_serve_tells_what_it_encrypted_and_what_lies_about_in_clear(
    tmp_path: Path, folder: Path
) -> None:
    key_option = ["--secrets-key-file", key_file(tmp_path / "keys", OLD_KEY)]
    logs = [_log_of_serving(folder, *options) for options in ([], key_option, key_option)]
    first = folder / "first-key.json"
    secret = json.loads(first.read_text())["signing_secret"]
    first.unlink()
    logs.append(_log_of_serving(folder, *key_option))

    told = [[line.split()[2] for line in log.splitlines() if " secrets." in line] for log in logs]
    left = "secrets.first_key_in_clear"
    assert [[], ["secrets.encrypted", left], [left], []] == told
    assert f"count=1 key={Sealer([OLD_KEY]).current}" in logs[1]
    assert not in_database(folder, secret)
    assert secret not in "".join(logs)
    assert base64.b64encode(OLD_KEY).decode() not in "".join(logs)


def _log_of_serving(folder: Path, *options: str) -> str:
    with serve_process(folder, *options) as server:
        assert server.first_line
        server.process.send_signal(signal.SIGTERM)
        return server.process.communicate()[1]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (None, "but no key is given: name its file by --secrets-key-file"),
        (NEW_KEY, "which the secrets key file does not hold"),
    ],
)
def test_serve_without_the_key_refuses_in_one_line_and_changes_nothing(
    tmp_path: Path, encrypted: dict[str, str], folder: Path, key: bytes | None, told: str
) -> None:
    options = [] if key is None else ["--secrets-key-file", key_file(tmp_path / "other", key)]
    with serve_process(folder, *options) as server:
        output, errors = server.process.communicate()

    assert 1 == server.process.returncode
    assert not server.first_line + output
    (line,) = errors.splitlines()
    assert line.startswith("Error: signing secrets are encrypted with key ")
    assert told in line
    assert 0 == keys("rotate", "default", **encrypted).exit_code
    assert not in_database(folder, SECRET)


@pytest.mark.parametrize("command", [["create", "x"], ["rotate", "default"]])
def test_a_command_without_the_key_makes_no_secret(
    tmp_path: Path, encrypted: dict[str, str], command: list[str]
) -> None:
    other_file = key_file(tmp_path / "other", NEW_KEY)
    open_file = tmp_path / "open"
    open_file.write_bytes(base64.b64encode(OLD_KEY))
    open_file.chmod(0o644)
    before = keys("list", "--json", **encrypted).stdout

    without = keys(*command, PICBACK_DATA=encrypted["PICBACK_DATA"])
    other = keys(*command, "--secrets-key-file", other_file, **encrypted)
    open_to_others = keys(*command, "--secrets-key-file", str(open_file), **encrypted)

    for result in (without, other, open_to_others):
        assert 1 == result.exit_code
        assert not result.stdout
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
    assert "name its file by --secrets-key-file" in without.stderr
    assert "which the secrets key file does not hold" in other.stderr
    assert "with mode 600" in open_to_others.stderr
    assert before == keys("list", "--json", **encrypted).stdout


def test_what_makes_no_secret_needs_no_key(encrypted: dict[str, str]) -> None:
    data = encrypted["PICBACK_DATA"]
    created = keys("create", "x", **encrypted)
    listed = keys("list", "--json", PICBACK_DATA=data)
    revoked = keys("revoke", "x", PICBACK_DATA=data)

    assert [0, 0, 0] == [result.exit_code for result in (created, listed, revoked)]
    names = {json.loads(line)["name"] for line in listed.stdout.splitlines()}
    assert {"default", "x"} == names
