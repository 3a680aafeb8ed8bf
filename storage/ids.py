"""Identifiers: a prefix that tells the kind, then 26 characters that sort by time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Crockford's base 32 in lower case: digits sort before letters, no i, l, o or u.
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
#: Two characters for each 10 bits, which takes half the time of one for each 5.
_PAIRS: Final = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_SHIFTS: Final = tuple(range(120, -1, -10))


def new_id(prefix: str, *, now: int, randomness: Callable[[int], bytes] = os.urandom) -> str:
    """Return *prefix*, an underscore and 26 base32 characters.

    The first 10 characters are *now* (milliseconds since the epoch, 48 bits), the other
    16 are random (80 bits), so ids sort by creation time and cannot be guessed.
    """
    number = (now << 80) | int.from_bytes(randomness(10))
    return f"{prefix}_" + "".join([_PAIRS[(number >> shift) & 1023] for shift in _SHIFTS])
