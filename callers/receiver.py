"""A small receiver of callbacks: checks signatures, keeps pictures, answers by script.

For trying things out on one's own machine. What a request claims is never used as a file
name, and nothing of it is believed or kept before its signature is checked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from callers.image_files import SUFFIXES
from dispatcher import SignatureError, decode_secret, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

#: Longest body that is read, in bytes: an image of 20 MB in base64, its facts, and as much
#: again for servers that allow larger images.
MAX_BODY_BYTES: Final = 60_000_000
#: Seconds that a sender may fall silent.
_SILENCE: Final = 30
#: Webhook ids remembered to tell duplicates.
_MOST_REMEMBERED: Final = 10_000
_QUERY_ID: Final = re.compile(r"qry_[0-9a-z]{26}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One callback and how it was answered.

    Attributes:
        webhook_id: As the header says; "" without one.
        verified: Its signature fits; None when there was no secret to check it with.
        problem: Why it was refused; "" when it was not.
        type: "query.matched" or "query.unmatched"; "" when refused.
        data: The body's facts, as they came; empty when refused.
        content: The image file; None when nothing matched.
        duplicate: The same webhook-id was answered with 2xx before.
        saved: Where the image was written.
        status: The HTTP status that was answered.
    """

    webhook_id: str = ""
    verified: bool | None = None
    problem: str = ""
    type: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    duplicate: bool = False
    saved: Path | None = None
    status: int


class RefusedError(Exception):
    """A request that is no good callback; the sender is told *status*."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class Receiver:
    """Serves one address until closed.

    Args:
        address: Host and port; port 0 picks a free one.
        secret: ``whsec_…`` to check signatures with; "" takes everything as it comes.
        answers: HTTP statuses for good callbacks, in turn; the last one goes on for ever.
        delay: Seconds to wait before each answer.
        folder: Where pictures are written, which must exist; None for nowhere.
        on_arrival: Called with each arrival after it was answered, by one thread at a time.

    Raises:
        OSError: The address cannot be listened on.
        ValueError: *secret* is not one.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        secret: str,
        answers: Sequence[int],
        delay: float,
        folder: Path | None,
        on_arrival: Callable[[Arrival], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._secrets = [decode_secret(secret)] if secret else []
        self._answers = list(answers)
        self._delay = delay
        self._folder = folder
        self._on_arrival = on_arrival
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._accepted: OrderedDict[str, None] = OrderedDict()
        self._server = _Server(address, self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it can be called."""
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes) else str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        if self._thread.is_alive():  # otherwise there is nobody to answer `shutdown`
            self._server.shutdown()
        self._server.server_close()

    def take(self, headers: Mapping[str, str], body: bytes) -> Arrival:
        """Check a request and keep what it brings; return it with the answer it deserves."""
        webhook_id = headers.get("webhook-id", "")
        verified = None
        try:
            if self._secrets:
                verified = False
                verify(self._secrets, headers=headers, body=body, now=self._clock())
                verified = True
            type_, data, content = _parse(body)
            saved = self._save(webhook_id, data, content)
        except SignatureError as error:
            return Arrival(webhook_id=webhook_id, verified=False, problem=str(error), status=401)
        except RefusedError as error:
            return Arrival(
                webhook_id=webhook_id, verified=verified, problem=str(error), status=error.status
            )
        with self._lock:
            duplicate = webhook_id in self._accepted
            status = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if 200 <= status < 300:
                self._accepted[webhook_id] = None
                while len(self._accepted) > _MOST_REMEMBERED:
                    self._accepted.popitem(last=False)
        return Arrival(
            webhook_id=webhook_id,
            verified=verified,
            type=type_,
            data=data,
            content=content,
            duplicate=duplicate,
            saved=saved,
            status=status,
        )

    def pause(self) -> None:
        """Wait as long as an answer is to be delayed."""
        if self._delay:
            self._sleep(self._delay)

    def report(self, arrival: Arrival) -> None:
        """Hand *arrival* on; for the server's threads."""
        with self._lock:
            self._on_arrival(arrival)

    def _save(self, webhook_id: str, data: Mapping[str, Any], content: bytes | None) -> Path | None:
        if self._folder is None or content is None:
            return None
        # A name that is no query id could be a path, or a device.
        known = _QUERY_ID.fullmatch(webhook_id)
        stem = webhook_id if known else hashlib.sha256(webhook_id.encode()).hexdigest()[:30]
        image = data.get("image")
        media_type = image.get("media_type") if isinstance(image, dict) else None
        path = self._folder / (stem + SUFFIXES.get(str(media_type), ".bin"))
        try:
            path.write_bytes(content)
        except OSError as error:
            problem = f"cannot write {path}: {error.strerror}"
            raise RefusedError(500, problem) from error
        return path


def _parse(body: bytes) -> tuple[str, Mapping[str, Any], bytes | None]:
    """Return type, data and image of a callback's body.

    Raises:
        RefusedError: It is not a callback of picback's.
    """
    try:
        document = json.loads(body)
        type_, data, result = document["type"], document["data"], document["result"]
        content = None if result is None else base64.b64decode(result, validate=True)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise RefusedError(400, "the body is no picback callback") from error
    if not isinstance(type_, str) or not isinstance(data, dict):
        raise RefusedError(400, "the body is no picback callback")
    return type_, data, content


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a sender that hangs up is the sender's affair."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _SILENCE
    server: _Server

    def do_POST(self) -> None:
        receiver = self.server.receiver
        try:
            body = self._body()
        except RefusedError as error:
            self.close_connection = True  # the body was not read
            arrival = Arrival(problem=str(error), status=error.status)
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            arrival = receiver.take(headers, body)
        receiver.pause()
        self._answer(arrival.status)
        receiver.report(arrival)

    def version_string(self) -> str:
        return "picback"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Say nothing: arrivals are reported."""

    def _body(self) -> bytes:
        length = self.headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length):
            raise RefusedError(411, "the request does not say how long its body is")
        if int(length) > MAX_BODY_BYTES:
            problem = f"the body has {int(length):,} bytes, more than {MAX_BODY_BYTES:,}"
            raise RefusedError(413, problem)
        return self.rfile.read(int(length))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", "0")
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.flush()
