"""What the tests of the deliverer share: deliverers that may call this machine, and ways to call."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatcher.deliverer import Answered, Failed, HttpDeliverer
from dispatcher.receiver_tls import receiver_context
from dispatcher.url_guard import UrlGuard

if TYPE_CHECKING:
    from tests.fault_server import FaultServer
    from tests.receiver import Receiver

#: Certificates and the authority that signed most of them; `make.sh` there says how.
TLS: Final = Path(__file__).parent / "tls"
#: A name in those certificates. It leads to this machine if `loopback` resolves it.
NAME: Final = "receiver.test"
#: A deadline to wait for in a test.
SOON: Final = 0.4
#: A deadline that loopback never needs, however busy the machine.
LATE: Final = 60.0

HEADERS: Final = {"content-type": "application/json", "webhook-id": "qry_1"}
BODY: Final = b'{"result":null}'


def deliverer_for(*servers: Receiver | FaultServer, **arguments: Any) -> closing[HttpDeliverer]:
    """Return a deliverer that may call *servers*, by address and by `NAME`.

    The arguments are those of `HttpDeliverer` and `receiver_context`.
    """
    files = {name: arguments.pop(name) for name in list(arguments) if name.endswith("_file")}
    arguments.setdefault("ssl_context", receiver_context(**files))
    hosts = ("127.0.0.1", NAME)
    allow = [f"{host}:{server.port}" for server in servers for host in hosts]
    return closing(HttpDeliverer(UrlGuard(allow=allow), **{"resolver": loopback} | arguments))


def loopback(host: str, port: int) -> list[str]:
    """Resolve every name to this machine."""
    del host, port
    return ["127.0.0.1"]


def url_of(server: Receiver | FaultServer, *, scheme: str = "http", host: str = "127.0.0.1") -> str:
    """Return a URL that leads to *server*."""
    return f"{scheme}://{host}:{server.port}/callback"


def answer_from(deliverer: HttpDeliverer, url: str, *, body: bytes = BODY) -> Answered:
    """Call back, and return the answer that there must be."""
    outcome = deliverer.deliver(url, headers=HEADERS, body=[body])

    assert isinstance(outcome, Answered)
    return outcome


def failure_at(deliverer: HttpDeliverer, url: str, *, body: bytes = BODY) -> Failed:
    """Call back, and return the failure that there must be."""
    outcome = deliverer.deliver(url, headers=HEADERS, body=[body])

    assert isinstance(outcome, Failed)
    return outcome
