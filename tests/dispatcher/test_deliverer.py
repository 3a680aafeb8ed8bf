"""One attempt against a receiver that means well."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest

from dispatcher.deliverer import MAX_EXCERPT_BYTES, Answered
from tests.dispatcher.calling import HEADERS, answer_from, deliverer_for, failure_at
from tests.fault_server import FaultServer
from tests.receiver import Answer, Receiver

if TYPE_CHECKING:
    from dispatcher.deliverer import Outcome


def answered(
    status: int, *, retry_after: float | None = None, excerpt: bytes = b"", gone: bool = False
) -> Answered:
    return Answered(status=status, retry_after=retry_after, excerpt=excerpt, gone=gone)


def test_the_request_is_what_the_caller_asked_for() -> None:
    with Receiver() as receiver, deliverer_for(receiver, user_agent="picback/1.2") as deliverer:
        url = f"http://127.0.0.1:{receiver.port}/a//b%2F?c=d&e=%C3%A4"
        outcome = deliverer.deliver(url, headers=HEADERS, body=[b"\x00\xff", b"", b"body"])
    (request,) = receiver.requests

    assert answered(200) == outcome
    assert "POST" == request.method
    assert "/a//b%2F?c=d&e=%C3%A4" == request.path
    assert b"\x00\xffbody" == request.body
    assert request.headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "content-type": "application/json",
        "webhook-id": "qry_1",
        "user-agent": "picback/1.2",
        "accept-encoding": "identity",
        "content-length": "6",
    }


def test_a_body_of_many_megabytes_arrives_whole() -> None:
    body = bytes(range(256)) * 40_000
    with Receiver() as receiver, deliverer_for(receiver) as deliverer:
        answer_from(deliverer, receiver.url, body=body)

    assert body == receiver.requests[0].body


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(204), answered(204)),
        (Answer(404, {}, b"no"), answered(404, excerpt=b"no")),
        (Answer(503, {"Retry-After": "120"}), answered(503, retry_after=120.0)),
        (
            Answer(429, {"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}),
            answered(429, retry_after=50.0),  # it is 00:00:10
        ),
        (Answer(503, {"retry-after": "\xb2"}), answered(503)),  # a digit to str.isdigit
        (Answer(410), answered(410, gone=True)),
        (Answer(500, {"Webhook-Delivery": " Disable "}), answered(500, gone=True)),
        (Answer(400, {"webhook-delivery": "abort-message"}), answered(400, gone=True)),
        (Answer(400, {"webhook-delivery": "please"}), answered(400)),
    ],
)
def test_an_answer_is_told_as_it_is(answer: Answer, outcome: Outcome) -> None:
    with Receiver([answer]) as receiver, deliverer_for(receiver, clock=lambda: 10.0) as deliverer:
        assert outcome == answer_from(deliverer, receiver.url)


def test_only_the_beginning_of_an_answer_is_kept() -> None:
    body = bytes(range(256)) * 16
    with Receiver([Answer(200, {}, body)]) as receiver, deliverer_for(receiver) as deliverer:
        answer = answer_from(deliverer, receiver.url)

    assert 1024 == MAX_EXCERPT_BYTES
    assert body[:1024] == answer.excerpt


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with Receiver() as elsewhere:
        headers = {"location": elsewhere.url, "refresh": f"0; url={elsewhere.url}"}
        with (
            Receiver([Answer(status, headers)]) as receiver,
            deliverer_for(receiver, elsewhere) as deliverer,
        ):
            answer = answer_from(deliverer, receiver.url)

    assert status == answer.status
    assert [] == elsewhere.requests


def test_a_cookie_is_not_sent_back() -> None:
    with (
        Receiver([Answer(200, {"set-cookie": "a=b"})]) as receiver,
        deliverer_for(receiver) as deliverer,
    ):
        for _ in range(2):
            answer_from(deliverer, receiver.url)

    assert "cookie" not in receiver.requests[1].headers


def test_proxies_in_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(lambda *_: None) as proxy, Receiver() as receiver:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with deliverer_for(receiver) as deliverer:
            answer = answer_from(deliverer, receiver.url)

    assert 200 == answer.status
    assert 0 == proxy.connections


def test_a_compressed_answer_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(50_000_000), wbits=31)
    answers = [Answer(200, {"content-encoding": "gzip"}, bomb)]
    with Receiver(answers) as receiver, deliverer_for(receiver) as deliverer:
        answer = answer_from(deliverer, receiver.url)

    assert bomb[:1024] == answer.excerpt


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1\\@8.8.8.8/", "CALLBACK_URL_INVALID"),
        ("http://2130706433/", "CALLBACK_URL_INVALID"),
        ("http://127.0.0.1/", "ADDRESS_FORBIDDEN"),
        ("http://localhost/", "ADDRESS_FORBIDDEN"),
        ("http://example.com:25/", "ADDRESS_FORBIDDEN"),
    ],
)
def test_a_url_is_checked_again_at_each_attempt(url: str, reason: str) -> None:
    with deliverer_for() as deliverer:
        assert reason == failure_at(deliverer, url).reason
