"""`picback listen` and its receiver: what is believed, what is kept, what is answered."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import standardwebhooks
from click.testing import CliRunner

from callers.receiver import MAX_BODY_BYTES, Receiver
from dispatcher import decode_secret
from picback.v1 import image_service_pb2, query_pb2
from server.cli import main
from tests.service import picture, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from callers.receiver import Arrival

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
QUERY_ID = "qry_" + "0" * 26
PICTURE = picture(1)


def _body(**changes: Any) -> bytes:
    """Return the body of a callback with a picture; *changes* replace its parts."""
    facts = {
        "query_id": QUERY_ID,
        "text": "a dog",
        "lemmas": ["a", "dog"],
        "score": 0.98,
        "image": {"id": "img_x", "media_type": "image/png"},
        "matched_tags": [{"name": "dog", "lemma": "dog", "confidence": 0.98}],
    }
    document = {
        "type": "query.matched",
        "timestamp": "2026-11-22T10:00:00Z",
        "data": facts,
        "result": base64.b64encode(PICTURE).decode(),
    }
    return json.dumps(document | changes).encode()


def _signed(body: bytes, *, webhook_id: str = QUERY_ID, secret: str = SECRET) -> dict[str, str]:
    """Return headers as a sender makes them, with the public library's signature."""
    now = datetime.now(UTC)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(secret).sign(webhook_id, now, body.decode()),
    }


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    place = urlsplit(url)
    assert place.hostname is not None
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    try:
        connection.request("POST", "/", body, dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


class Listening:
    """A receiver of `picback listen` in this process, and what it reported."""

    def __init__(self, **options: Any) -> None:
        self.arrivals: list[Arrival] = []
        self._arrived = threading.Condition()
        self._posts = 0
        self.pauses: list[float] = []
        settings: dict[str, Any] = {"secret": SECRET, "answers": [204], "delay": 0, "folder": None}
        self.receiver = Receiver(
            ("127.0.0.1", 0),
            on_arrival=self._note,
            sleep=self.pauses.append,
            **settings | options,
        )
        self.url = self.receiver.url

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Send *body*; return the answer when the arrival, which comes later, is noted, too."""
        status = _post(self.url, body, _signed(body) if headers is None else headers)
        with self._arrived:
            self._posts += 1
            assert self._arrived.wait_for(lambda: len(self.arrivals) >= self._posts, 30)
        return status

    def _note(self, arrival: Arrival) -> None:
        with self._arrived:
            self.arrivals.append(arrival)
            self._arrived.notify_all()


@contextmanager
def _listening(**options: Any) -> Iterator[Listening]:
    listening = Listening(**options)
    listening.receiver.start()
    try:
        yield listening
    finally:
        listening.receiver.close()


def test_a_signed_callback_is_verified_and_its_picture_saved(tmp_path: Path) -> None:
    with _listening(folder=tmp_path) as listening:
        status = listening.post(_body())

    (arrival,) = listening.arrivals
    assert 204 == status == arrival.status
    assert arrival.verified is True
    assert "" == arrival.problem
    assert "a dog" == arrival.data["text"]
    assert tmp_path / f"{QUERY_ID}.png" == arrival.saved
    assert PICTURE == arrival.saved.read_bytes()


def test_what_nobody_signed_is_answered_401_and_not_kept(tmp_path: Path) -> None:
    body = _body()
    forged = _signed(body, secret="whsec_" + base64.b64encode(bytes(32)).decode())
    with _listening(folder=tmp_path) as listening:
        statuses = [
            listening.post(body, forged),
            listening.post(body, {}),
            listening.post(_body(type="other"), _signed(body)),
        ]

    assert [401, 401, 401] == statuses
    assert [False, False, False] == [arrival.verified for arrival in listening.arrivals]
    assert all(arrival.problem for arrival in listening.arrivals)
    assert [] == list(tmp_path.iterdir())


def test_without_a_secret_everything_is_taken_and_called_not_verified() -> None:
    with _listening(secret="") as listening:
        status = listening.post(_body(), {"webhook-id": "x"})

    (arrival,) = listening.arrivals
    assert 204 == status
    assert arrival.verified is None


def test_nothing_matched_is_a_callback_without_a_picture(tmp_path: Path) -> None:
    with _listening(folder=tmp_path) as listening:
        status = listening.post(_body(type="query.unmatched", result=None))

    (arrival,) = listening.arrivals
    assert 204 == status
    assert "query.unmatched" == arrival.type
    assert arrival.content is None
    assert arrival.saved is None
    assert [] == list(tmp_path.iterdir())


def test_answers_are_given_in_turn_and_the_last_for_ever() -> None:
    with _listening(answers=[503, 429, 204]) as listening:
        statuses = [listening.post(_body()) for _ in range(4)]

    assert [503, 429, 204, 204] == statuses
    # Only what was accepted makes the next one a duplicate.
    assert [False, False, False, True] == [arrival.duplicate for arrival in listening.arrivals]


def test_each_answer_is_delayed() -> None:
    with _listening(delay=1.5) as listening:
        listening.post(_body())
        listening.post(b"", {})

    assert [1.5, 1.5] == listening.pauses


@pytest.mark.parametrize("webhook_id", ["../../outside", "/etc/passwd", "a\\b", "qry_short", ""])
def test_a_file_name_is_never_what_a_sender_wants(tmp_path: Path, webhook_id: str) -> None:
    folder = tmp_path / "inside/folder"
    folder.mkdir(parents=True)
    body = _body()
    with _listening(folder=folder) as listening:
        status = listening.post(body, _signed(body, webhook_id=webhook_id))

    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert 204 == status
    assert folder == path.parent
    assert f"{hashlib.sha256(webhook_id.encode()).hexdigest()[:30]}.png" == path.name


@pytest.mark.parametrize("image", [{"media_type": "../x"}, {"media_type": ["a"]}, {}, None, "x"])
def test_an_ending_is_never_what_a_sender_wants(tmp_path: Path, image: object) -> None:
    body = _body(data={"image": image})
    with _listening(folder=tmp_path) as listening:
        listening.post(body)

    assert [f"{QUERY_ID}.bin"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"type": "x"}',
        _body(data=[]),
        _body(type=None),
        _body(result="not base64!"),
        _body(result=7),
        b"[" * 100_000,  # deeper than Python's stack
        b"\xff\xfe",
    ],
)
def test_what_is_no_callback_is_answered_400(body: bytes) -> None:
    with _listening(secret="") as listening:
        status = listening.post(body, {})

    (arrival,) = listening.arrivals
    assert 400 == status
    assert "the body is no picback callback" == arrival.problem


@pytest.mark.parametrize(
    ("length", "status"),
    [(None, 411), ("-1", 411), ("1e3", 411), ("9" * 30, 411), (str(MAX_BODY_BYTES + 1), 413)],
)
def test_a_body_without_bounds_is_not_read(length: str | None, status: int) -> None:
    with _listening() as listening:
        place = urlsplit(listening.url)
        connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=30)
        connection.putrequest("POST", "/")
        if length is not None:
            connection.putheader("content-length", length)
        connection.endheaders()
        answer = connection.getresponse()
        connection.close()

    assert status == answer.status
    assert "close" == answer.getheader("connection")


def test_a_picture_that_cannot_be_written_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / f"{QUERY_ID}.png").mkdir()
    with _listening(folder=tmp_path) as listening:
        status = listening.post(_body())

    (arrival,) = listening.arrivals
    assert 500 == status
    assert "Is a directory" in arrival.problem


def test_a_real_servers_callback_is_verified_and_kept(tmp_path: Path) -> None:
    with _listening(folder=tmp_path) as listening:
        address = listening.url.split("/")[2]
        with running(tmp_path / "data", allow_callback=(address,)) as service:
            # Its secret is made when it starts, and it has to know our port by then.
            listening.receiver._secrets = [decode_secret(service.signing_secret)]
            upload = image_service_pb2.UploadImageRequest(content=PICTURE)
            upload.tags.add(name="dog")
            service.stub.UploadImage(upload, metadata=service.metadata)
            submit = image_service_pb2.SubmitQueryRequest(text="dogs", callback_url=listening.url)
            submitted = service.stub.SubmitQuery(submit, metadata=service.metadata).query
            watch = image_service_pb2.WatchQueryRequest(query_id=submitted.id)
            (*_, last) = service.stub.WatchQuery(watch, metadata=service.metadata)

    assert query_pb2.QUERY_STATE_DELIVERED == last.query.state
    assert [(submitted.id, True)] == [
        (arrival.webhook_id, arrival.verified) for arrival in listening.arrivals
    ]
    assert PICTURE == (tmp_path / f"{submitted.id}.png").read_bytes()


# --- the command


def _command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "server", "listen", "--port", "0", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_names_its_address_first_and_ends_after_its_count(tmp_path: Path) -> None:
    arguments = ["--json", "--count", "1", "--save", str(tmp_path / "new/folder")]
    with _command(*arguments, PICBACK_SIGNING_SECRET=SECRET) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["listening"]
        body = _body()
        statuses = [_post(url, body, {}), _post(url, body, _signed(body))]
        output, errors = process.communicate(timeout=60)

    refused, accepted = (json.loads(line) for line in output.splitlines())
    assert (0, "") == (process.returncode, errors)
    assert [401, 204] == statuses
    assert (False, 401) == (refused["verified"], refused["status"])
    assert {
        "webhook_id": QUERY_ID,
        "verified": True,
        "status": 204,
        "problem": "",
        "duplicate": False,
        "type": "query.matched",
        "data": json.loads(body)["data"],
        "size_bytes": len(PICTURE),
        "saved": f"{tmp_path}/new/folder/{QUERY_ID}.png",
    } == accepted


def test_the_command_prints_for_people_what_arrived(tmp_path: Path) -> None:
    secret = tmp_path / "key.json"
    secret.write_text(json.dumps({"key": "pbk_x", "signing_secret": SECRET}))
    arguments = ["--count", "3", "--secret-file", str(secret), "--save", str(tmp_path)]
    with _command(*arguments) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").rstrip()
        hostile = {"text": "\x1b[31m", "lemmas": "x", "matched_tags": [1], "score": {}}
        for body in (_body(), _body(), _body(data=hostile, result=None)):
            _post(url, body, _signed(body))
        output, errors = process.communicate(timeout=60)

    lines = re.sub(r"\d\d:\d\d:\d\dZ", "NOW", output).splitlines()
    saved = f"{tmp_path}/{QUERY_ID}.png"
    size = f"{len(PICTURE)} bytes"
    picture_lines = [
        "           text    a dog",
        "           lemmas  a, dog",
        "           match   dog 0.98; score 0.98",
        f"           image   image/png, {size}, saved as {saved}",
    ]
    assert (0, "") == (process.returncode, errors)
    assert [
        f"NOW  204  {QUERY_ID}  signature verified",
        *picture_lines,
        f"NOW  204  {QUERY_ID}  signature verified  (seen before)",
        *picture_lines,
        f"NOW  204  {QUERY_ID}  signature verified  (seen before)",
        r"           text    \x1b[31m",
        "           lemmas  x",
        "           match   nothing",
    ] == lines


def test_ctrl_c_ends_the_command_quietly_with_130() -> None:
    with _command() as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert first.startswith("listening on http://127.0.0.1:")
    assert (130, "") == (process.returncode, errors)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--secret", "no secret"], 2),
        (["--secret", "whsec_dG9vIHNob3J0"], 2),
        (["--secret", SECRET, "--secret-file", "x"], 2),
        (["--answer", "200,"], 2),
        (["--answer", "100"], 2),  # no final answer
        (["--host", "192.0.2.1", "--port", "0"], 1),  # of nobody's machine
        (["--save", "/dev/null/x"], 1),
    ],
)
def test_options_that_cannot_work_end_the_command(arguments: list[str], exit_code: int) -> None:
    result = CliRunner().invoke(main, ["listen", *arguments])

    assert exit_code == result.exit_code
    assert "" == result.stdout
    assert "Traceback" not in result.stderr
