"""What a child process may use. Called by the child, before it sees an untrusted byte.

What a system does not have is left out: outside Linux there is no way to be ended with the parent
(but the closed socket), and macOS does not enforce a limit on address space.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Source: prctl(2), linux/prctl.h.
_PR_SET_PDEATHSIG: Final = 1
#: Open files of a child: its socket, and the files of the modules that it imports.
_MAX_FILES: Final = 64


def confine(*, parent: int) -> None:
    """Limit this process for good, and end it with the server.

    Args:
        parent: Process id of the server.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # see `limit_cpu`
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The kernel shall end this process and not the server when memory is short.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        # The thread that started this process may be bound to one core.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
    if os.getppid() != parent:
        sys.exit(0)  # it ended before it could be watched
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def limit_memory(most_bytes: int) -> None:
    """Limit address space, for good."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))


@contextlib.contextmanager
def less_memory(most_bytes: int) -> Iterator[None]:
    """Limit address space to so much, or to what is allowed anyway, while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):
        least = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_cpu(seconds: float) -> None:
    """End this process by SIGPROF after so much processor time; 0 takes the limit away.

    The kernel does it, in whatever C code the process then is.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
