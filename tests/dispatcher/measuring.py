"""Attempts in processes of their own, so that the memory of each can be told.

`attempts` runs this file as a process that loads what an attempt needs and forks one child for
each. A child's peak begins at what the fork left it, so nothing that an earlier attempt freed can
hide what this one takes, as it would within one process.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatcher.deliverer import Failed, HttpDeliverer
from dispatcher.url_guard import UrlGuard
from tests.dispatcher.calling import HEADERS, TLS, loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dispatcher.url_guard import Resolver

#: What an attempt sends, in bytes: an image of 5 MB in base64.
BODY_BYTES: Final = 7_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of an attempt, and what it took.

    Attributes:
        outcome: The status of an answer, or the reason of a failure.
        message: The sentence of a failure.
        seconds: How long it took.
        memory: By how many bytes the peak of resident memory was above the start, the body
            that is sent included.
    """

    outcome: str
    message: str
    seconds: float
    memory: int


@contextmanager
def attempts() -> Iterator[Callable[..., Measured]]:
    """Yield a function that makes an attempt; its arguments are those of `_attempt`."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.dispatcher.measuring"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def attempt(**arguments: Any) -> Measured:
            print(json.dumps(arguments), file=stdin, flush=True)
            return Measured(**json.loads(stdout.readline()))

        yield attempt
        stdin.close()


def hanging(host: str, port: int) -> list[str]:
    """Resolve nothing, for ever."""
    del host, port
    threading.Event().wait()
    return []


def answering_at_length(host: str, port: int) -> list[str]:
    """Resolve every name to far more addresses than DNS has room for."""
    return loopback(host, port) * 100_000


RESOLVERS: Final[Mapping[str, Resolver]] = {
    each.__name__: each for each in (loopback, hanging, answering_at_length)
}


def _attempt(
    context: ssl.SSLContext,
    *,
    port: int,
    timeout: float,
    scheme: str = "http",
    host: str = "127.0.0.1",
    resolver: str = "loopback",
) -> Measured:
    """Call back once; *timeout* is in seconds, *resolver* a name in `RESOLVERS`."""
    memory_before = _memory("VmRSS")
    deliverer = HttpDeliverer(
        UrlGuard(allow=[f"{host}:{port}"]),
        timeout=timeout,
        resolver=RESOLVERS[resolver],
        ssl_context=context,
    )
    body = b"x" * BODY_BYTES
    started = time.monotonic()
    outcome = deliverer.deliver(f"{scheme}://{host}:{port}/callback", headers=HEADERS, body=[body])
    seconds = time.monotonic() - started
    memory = _memory("VmHWM") - memory_before
    if isinstance(outcome, Failed):
        name, message = outcome.reason, outcome.message
    else:
        name, message = str(outcome.status), ""
    return Measured(outcome=name, message=message, seconds=seconds, memory=memory)


def _memory(entry: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == entry:
            return int(value.split()[0]) * 1024
    raise KeyError(entry)


def main() -> None:
    """Make the attempts that come in on stdin, one a line, until it ends."""
    context = ssl.create_default_context(cafile=TLS / "ca.pem")
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            sys.stdout.write(json.dumps(asdict(_attempt(context, **json.loads(line)))) + "\n")
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit("the attempt crashed")


if __name__ == "__main__":
    main()
