from __future__ import annotations

import base64
import os
import stat
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from callers.secret_files import SecretFileError
from server.cli import main
from server.secrets_key_file import is_private, read_sealer
from storage.sealing import Sealer

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
LINE, OTHER_LINE = base64.b64encode(KEY), base64.b64encode(OTHER_KEY)
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets.key"


def write(path: Path, content: bytes, *, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def read(path: Path) -> Sealer:
    return read_sealer(path, data=path.parent / "data")


@pytest.mark.parametrize(
    "content",
    [
        LINE,
        LINE + b"\n",
        b"\n  " + LINE + b" \r\n\n",
        LINE + b"\n" + OTHER_LINE + b"\n",
    ],
)
def test_the_first_line_is_the_key_that_encrypts(path: Path, content: bytes) -> None:
    assert Sealer([KEY]).current == read(write(path, content)).current


def test_the_other_lines_decrypt(path: Path) -> None:
    other = Sealer([OTHER_KEY])
    stored = other.seal("whsec_x", owner="key_a", key=other.current)

    sealer = read(write(path, LINE + b"\n" + OTHER_LINE))

    assert "whsec_x" == sealer.open(stored, owner="key_a", key=other.current)


def test_without_a_file_nothing_is_encrypted(tmp_path: Path) -> None:
    assert read_sealer(None, data=tmp_path).current is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no keys"),
        (b"\n \n", "holds no keys"),
        (KEY, "line 1: is not a key"),  # not in base64
        (LINE[:-4], "line 1: is not a key"),
        (base64.b64encode(KEY[1:]), "line 1: is not a key"),
        (base64.b64encode(KEY + b"k"), "line 1: is not a key"),
        (LINE + b" " + OTHER_LINE, "line 1: is not a key"),
        (LINE + b"\n\nwhsec_" + LINE, "line 3: is not a key"),
        (b"\xff\xfe", "line 1: is not a key"),
        ((LINE + b"\n") * 300, "holds no keys"),  # too long to be one
    ],
)
def test_what_holds_anything_but_keys_is_told_without_what_it_holds(
    path: Path, content: bytes, told: str
) -> None:
    with pytest.raises(SecretFileError) as caught:
        read(write(path, content))

    message = str(caught.value)
    assert message.startswith(str(path))
    assert told in message
    assert LINE[:8].decode() not in message


def test_a_file_that_is_not_there_is_told(path: Path) -> None:
    with pytest.raises(SecretFileError, match=r"secrets\.key: No such file or directory"):
        read(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o777])
def test_a_file_that_others_could_read_or_change_is_refused(path: Path, mode: int) -> None:
    with pytest.raises(SecretFileError, match="make it yours alone, with mode 600"):
        read(write(path, LINE, mode=mode))


@pytest.mark.parametrize(
    ("owner", "mode", "private"),
    [
        (1000, 0o600, True),
        (1000, 0o400, True),
        (1000, 0o700, True),
        (1000, 0o440, False),
        (1000, 0o404, False),
        # Root lends it to a group.
        (0, 0o600, True),
        (0, 0o440, True),
        (0, 0o640, True),
        (0, 0o660, False),
        (0, 0o650, False),
        (0, 0o644, False),
        # Somebody else's file is theirs to change.
        (NOBODY, 0o600, False),
        (NOBODY, 0o400, False),
    ],
)
def test_a_file_is_ones_own_or_lent_by_root(owner: int, mode: int, private: bool) -> None:  # noqa: FBT001 - a table
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))

    assert private == is_private(status, user=1000)


def test_for_root_a_file_of_its_own_is_no_loan() -> None:
    status = os.stat_result((stat.S_IFREG | 0o640, 0, 0, 1, 0, 0, 0, 0, 0, 0))

    assert not is_private(status, user=0)


def test_a_file_in_the_data_folder_is_refused_wherever_the_path_leads(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "keys").mkdir(parents=True)
    path = write(data / "keys/secrets.key", LINE)
    link = tmp_path / "link"
    link.symlink_to(path)

    for way in (path, link, data / "../data/keys/secrets.key"):
        with pytest.raises(SecretFileError, match="lies in the data folder"):
            read_sealer(way, data=data)
    # Next to it is fine, whatever the name begins with.
    beside = write(tmp_path / "data.key", LINE)
    assert Sealer([KEY]).current == read_sealer(beside, data=data).current


def test_the_command_makes_a_file_that_works(path: Path) -> None:
    result = CliRunner().invoke(main, ["keys", "new-secrets-key-file", str(path)])
    sealer = read(path)

    assert 0 == result.exit_code
    assert f"wrote key {sealer.current} to {path}\n" in result.stdout
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    (line,) = path.read_bytes().splitlines()
    assert 32 == len(base64.b64decode(line, validate=True))
    assert line.decode() not in result.output


def test_the_command_makes_another_key_each_time(tmp_path: Path) -> None:
    for name in "abc":
        CliRunner().invoke(main, ["keys", "new-secrets-key-file", str(tmp_path / name)])

    assert 3 == len({(tmp_path / name).read_bytes() for name in "abc"})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("there", "there: File exists"),
        ("link", "link: File exists"),  # which leads nowhere
        ("nowhere/key", "nowhere/key: No such file or directory"),
    ],
)
def test_the_command_overwrites_nothing(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "there").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "missing")

    result = CliRunner().invoke(main, ["keys", "new-secrets-key-file", str(tmp_path / name)])

    assert 1 == result.exit_code
    assert f"Error: {tmp_path}/{told}\n" == result.stderr
    assert not result.stdout
    assert "kept" == (tmp_path / "there").read_text()
    assert {"there", "link"} == {path.name for path in tmp_path.iterdir()}
