"""A receiver of picback's callbacks that needs the standard library only.

PICBACK_SIGNING_SECRET=whsec_... python receiver.py 8080

It checks the signature before it looks at anything else, handles every webhook-id once,
and answers 204. picback tries again after any other answer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Longest body that is read, in bytes: an image of 20 MB in base64, and some facts.
MAX_BODY_BYTES = 30_000_000
#: Seconds that the sender's clock may differ from ours. Source: Standard Webhooks.
TOLERANCE = 300
ENDINGS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif"}


class SignatureError(Exception):
    """The request was not sent by the holder of the secret, or not now."""


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> str:
    """Return the webhook-id of a request that was signed with *secret*.

    *headers* has lower-case names; *body* is what came in, byte for byte. With the package
    standardwebhooks all of this is one line:

        standardwebhooks.Webhook(secret).verify(body, headers)

    Raises:
        SignatureError: It was not.
    """
    webhook_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE:
        msg = "the timestamp is missing or too far from now"
        raise SignatureError(msg)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
    # After a rotation of secrets there is one signature for each.
    for token in headers.get("webhook-signature", "").split():
        version, _, signature = token.partition(",")
        if version == "v1" and hmac.compare_digest(signature.encode(), expected):
            return webhook_id
    msg = "no signature fits"
    raise SignatureError(msg)


class Receiver(ThreadingHTTPServer):
    """Serves 127.0.0.1:*port* (0: a free one) and calls *handle* once per webhook-id.

    When *handle* raises, the answer is 500 and picback tries again.
    """

    def __init__(
        self, port: int, *, secret: str, handle: Callable[[str, dict[str, Any]], None]
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.secret = secret
        self.handle = handle
        # Yours belongs into the database that *handle* writes to, in the same transaction.
        self.handled: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Receiver

    def do_POST(self) -> None:
        """Verify, deduplicate, handle, answer."""
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            self.answer(413)
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            webhook_id = verify(self.server.secret, headers, body)
        except SignatureError as error:
            print(f"refused: {error}", file=sys.stderr)
            self.answer(401)
            return
        if webhook_id not in self.server.handled:
            try:
                self.server.handle(webhook_id, json.loads(body))
            except Exception as error:  # noqa: BLE001 - whatever it was, the sender must try again
                print(f"failed: {error!r}", file=sys.stderr)
                self.answer(500)
                return
            self.server.handled.add(webhook_id)
        self.answer(204)

    def answer(self, status: int) -> None:
        """Send *status* and no body."""
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Print no line for each request."""


def show(webhook_id: str, callback: dict[str, Any]) -> None:
    """Print what a callback says, and write its picture to the current folder."""
    facts = callback["data"]
    if callback["result"] is None:
        print(f"{facts['text']!r}: nothing matches", flush=True)
        return
    picture = base64.b64decode(callback["result"])
    # The id is a name that can be trusted, because the signature covers it.
    path = Path(webhook_id + ENDINGS.get(facts["image"]["media_type"], ".bin"))
    path.write_bytes(picture)
    tags = ", ".join(tag["name"] for tag in facts["matched_tags"])
    print(f"{facts['text']!r}: {path} ({tags}; score {facts['score']})", flush=True)


def main() -> None:
    """Receive until Ctrl-C."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    receiver = Receiver(port, secret=os.environ["PICBACK_SIGNING_SECRET"], handle=show)
    print(f"receiving on http://127.0.0.1:{receiver.server_port}/", flush=True)
    receiver.serve_forever()


if __name__ == "__main__":
    main()
