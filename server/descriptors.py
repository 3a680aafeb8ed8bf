"""How many file descriptors this process may have, and what they are for.

Everything that opens descriptors in numbers is bounded by its share of the limit, so that no part
can take what another one needs: idle callback connections from the database, or callers'
connections from callbacks.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass
from typing import Final

from server.config import ConfigError
from storage.database import MAX_READERS
from storage.readers import DESCRIPTORS_EACH

logger = logging.getLogger(__name__)

#: For the log, the lock, the writer, gRPC's own, child processes, look-ups, and files that are
#: open for a moment.
_RESERVE: Final = 64
#: Most idle callback connections and most connections of callers, with any limit. A connection of
#: a caller that does nothing took 17 KB in gRPC 1.85.
_MAX_IDLE_CALLBACKS: Final = 256
_MAX_CALLERS: Final = 4_096
#: Fewest connections of callers that are worth to start with.
_MIN_CALLERS: Final = 32
#: With fewer descriptors, callback connections are closed that would have been used again, and
#: callers are refused, sooner than they need be.
RECOMMENDED_LIMIT: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How a limit is shared out; the rest is a reserve.

    Attributes:
        readers: Most connections that read the database.
        idle_callbacks: Most callback connections that are kept open while idle.
        callers: Most connections of callers.
    """

    readers: int
    idle_callbacks: int
    callers: int


def raise_limit() -> None:
    """Raise this process's soft limit to the hard one, as far as the system allows.

    Programs that it starts inherit that; none of picback's uses select(2), which takes only
    descriptors below 1,024.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # macOS has a limit of its own below "unlimited"
        logger.warning("descriptors.limit_not_raised", extra={"error": str(error)})


def budget(delivery_threads: int) -> Budget:
    """Share out this process's soft limit; log once if it is low.

    Args:
        delivery_threads: Callbacks in flight at most, of which each has a connection.

    Raises:
        ConfigError: The limit is too low to serve.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 2**31
    shares = share_out(limit, delivery_threads)
    if limit < RECOMMENDED_LIMIT:
        logger.warning(
            "descriptors.few",
            extra={
                "limit": limit,
                "recommended": RECOMMENDED_LIMIT,
                "callers": shares.callers,
                "idle_callbacks": shares.idle_callbacks,
            },
        )
    return shares


def share_out(limit: int, delivery_threads: int) -> Budget:
    """Return the shares of *limit* descriptors.

    Raises:
        ConfigError: As `budget`.
    """
    readers = min(max(limit // 32, 4), MAX_READERS)
    rest = limit - _RESERVE - readers * DESCRIPTORS_EACH - delivery_threads
    idle = min(rest // 3, _MAX_IDLE_CALLBACKS)
    callers = min(rest - idle, _MAX_CALLERS)
    if callers < _MIN_CALLERS:
        msg = (
            f"this process may open {limit} files (ulimit -n), which is too few to serve; "
            f"allow it {RECOMMENDED_LIMIT:,} or more"
        )
        raise ConfigError(msg)
    return Budget(readers=readers, idle_callbacks=idle, callers=callers)
