"""What an attempt needs of this machine and did not get; the receiver has no part in it."""

from __future__ import annotations


class LocalResourceError(Exception):
    """Nothing was sent. The query goes back as it was, no attempt is used up, and a retry helps."""
