"""What one key may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picback.v1 import image_service_pb2 as pb
from server.errors import RequestError
from server.key_limits import KeyLimits
from tests.server.refusals import refused
from tests.server.serving import first_key, serving, stub_of
from tests.service import running

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = "http://127.0.0.1:1/"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _limits(clock: Clock, rate: float) -> KeyLimits:
    return KeyLimits(calls_per_second=rate, queued_queries=0, count_queued=lambda _: 0, now=clock)


def _allowed(limits: KeyLimits, key: str = "a") -> RequestError | None:
    try:
        limits.count_call(key)
    except RequestError as error:
        return error
    return None


@given(
    rate=st.floats(0.5, 50),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=100),
)
def test_no_more_calls_pass_than_the_bucket_and_its_rate_allow(
    rate: float, pauses: list[float]
) -> None:
    clock = Clock()
    limits = _limits(clock, rate)
    passed = 0

    for pause in pauses:
        clock.now += pause
        passed += _allowed(limits) is None

    assert 1 <= passed <= max(1.0, rate) + clock.now * rate + 1e-6


@given(rate=st.floats(0.5, 50))
def test_a_call_passes_after_the_time_that_the_caller_was_told(rate: float) -> None:
    clock = Clock()
    limits = _limits(clock, rate)
    refusal = None
    while refusal is None:
        refusal = _allowed(limits)
    assert refusal.retry_after_ms is not None

    clock.now += refusal.retry_after_ms / 1000

    assert _allowed(limits) is None


def test_keys_have_buckets_of_their_own_and_0_is_no_limit() -> None:
    limits, unlimited = _limits(Clock(), 1), _limits(Clock(), 0)

    assert [None, None] == [_allowed(limits, key) for key in "ab"]
    assert _allowed(limits, "a") is not None
    assert [None] * 1000 == [_allowed(unlimited) for _ in range(1000)]


def test_a_key_over_its_calls_is_told_when_to_come_back_and_others_are_served(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "data", limit_calls_per_second=0.01) as service:
        other = (("x-api-key", service.make_key("other")),)
        service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata)

        refusal = refused(
            lambda: service.stub.ListImages(pb.ListImagesRequest(), metadata=service.metadata)
        )
        service.stub.ListImages(pb.ListImagesRequest(), metadata=other)

    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED") == (refusal.code, refusal.reason)
    assert {"limit": "calls_per_second"} == refusal.metadata
    assert refusal.retry_after is not None
    assert 90 < refusal.retry_after <= 100
    assert str(round(refusal.retry_after * 1000)) == refusal.trailers["grpc-retry-pushback-ms"]


def test_a_key_with_too_many_queries_may_submit_when_one_is_final_also_after_a_restart(
    tmp_path: Path,
) -> None:
    options = {"limit_queued_queries": 2, "allow_callback": ("127.0.0.1:1",)}
    submit = pb.SubmitQueryRequest(text="dog", callback_url=NOBODY)
    with serving(tmp_path / "data", **options) as app, stub_of(app.address) as stub:
        metadata = first_key(app)
        queries = [stub.SubmitQuery(submit, metadata=metadata).query for _ in range(2)]
        before = refused(lambda: stub.SubmitQuery(submit, metadata=metadata))
    with serving(tmp_path / "data", **options) as app, stub_of(app.address) as stub:
        after = refused(lambda: stub.SubmitQuery(submit, metadata=metadata))
        stub.CancelQuery(pb.CancelQueryRequest(query_id=queries[0].id), metadata=metadata)
        stub.CancelQuery(pb.CancelQueryRequest(query_id=queries[0].id), metadata=metadata)
        third = stub.SubmitQuery(submit, metadata=metadata).query
        again = refused(lambda: stub.SubmitQuery(submit, metadata=metadata))

    assert third.id not in {query.id for query in queries}
    for refusal in (before, after, again):
        assert "LIMIT_EXCEEDED" == refusal.reason
        assert {"limit": "queued_queries"} == refusal.metadata
        assert (10.0, "10000") == (
            refusal.retry_after,
            refusal.trailers["grpc-retry-pushback-ms"],
        )


@pytest.mark.parametrize("name", ["limit_calls_per_second", "limit_queued_queries"])
def test_0_is_no_limit(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"allow_callback": ("127.0.0.1:1",), name: 0}
    with running(tmp_path / "data", **options) as service:
        for _ in range(3):
            service.stub.SubmitQuery(
                pb.SubmitQueryRequest(text="dog", callback_url=NOBODY), metadata=service.metadata
            )
