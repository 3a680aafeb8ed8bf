"""Reads API keys and signing secrets from files, so that they need not stand in a command.

Such a file holds the bare secret, or the JSON document in which `picback keys create
--json` and the first `picback serve` hand keys out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

#: Files that are longer hold something else, in bytes.
_MAX_BYTES: Final = 10_000


class SecretFileError(Exception):
    """The file cannot be read or holds no secret; the message says which, for users."""


def read_secret(path: Path, field: str) -> str:
    """Return the secret in *path*: its text, or *field* of its JSON document.

    Raises:
        SecretFileError: There is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise SecretFileError(msg) from error
    except UnicodeDecodeError:
        text = ""
    secret = _field(text, field) if text.lstrip().startswith("{") else text.strip()
    if len(text) > _MAX_BYTES or not is_plain(secret):
        msg = f"{path}: holds neither a secret alone nor JSON with {field!r}"
        raise SecretFileError(msg)
    return secret


def is_plain(secret: str) -> bool:
    """Tell whether *secret* can be one: visible ASCII characters only, at least one."""
    return secret != "" and all("!" <= character <= "~" for character in secret)


def _field(text: str, field: str) -> str:
    try:
        value = json.loads(text).get(field)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""
