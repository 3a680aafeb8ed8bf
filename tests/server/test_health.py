from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_service_pb2 as pb
from server.app import _MOST_HEALTH_WATCHERS
from tests.server.raw_http2 import calls_that_take_no_answer
from tests.server.refusals import refused
from tests.server.serving import first_key, serving, stub_of
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.app import App
    from tests.service import Service

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NAMES = ("", "picback.v1.ImageService")


def _request(name: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with serving(tmp_path / "data") as app:
        yield app


@pytest.fixture
def stub(app: App) -> Iterator[Any]:
    with grpc.insecure_channel(app.address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.fixture
def shared_stub(service: Service) -> Any:
    return health_pb2_grpc.HealthStub(service.channel)


@pytest.mark.parametrize("name", NAMES)
def test_a_running_server_serves(shared_stub: Any, name: str) -> None:
    assert SERVING == shared_stub.Check(_request(name)).status


def test_all_names_are_listed(shared_stub: Any) -> None:
    statuses = shared_stub.List(health_pb2.HealthListRequest()).statuses

    assert dict.fromkeys(NAMES, SERVING) == {
        name: answer.status for name, answer in statuses.items()
    }


def test_an_unknown_name_is_not_found_but_can_be_watched(shared_stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shared_stub.Check(_request("other"))
    watch = shared_stub.Watch(_request("other"))

    error: Any = caught.value
    assert grpc.StatusCode.NOT_FOUND == error.code()
    assert SERVICE_UNKNOWN == next(watch).status
    watch.cancel()


def test_a_key_is_not_needed_and_does_no_harm(shared_stub: Any) -> None:
    assert SERVING == shared_stub.Check(_request(), metadata=(("x-api-key", "wrong"),)).status


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_garbage_is_refused_and_leaves_no_traceback(
    service: Service, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    call: Any = service.channel.unary_stream(f"/grpc.health.v1.Health/{method}")

    assert "REQUEST_MALFORMED" == refused(lambda: list(call(b"\xff\xff"))).reason
    assert not caplog.records


@pytest.mark.parametrize("name", NAMES)
def test_a_watcher_is_told_each_change_once(app: App, stub: Any, name: str) -> None:
    watch = stub.Watch(_request(name))
    seen = [next(watch).status]

    for serving_ in (False, False, True):
        app._health.set_serving(serving=serving_)
        if serving_ != (seen[-1] == SERVING):
            seen.append(next(watch).status)
    app._health.end()
    seen += [answer.status for answer in watch]

    assert [SERVING, NOT_SERVING, SERVING, NOT_SERVING] == seen
    assert grpc.StatusCode.OK == watch.code()


def test_a_watch_that_begins_after_the_end_ends_at_once(app: App, stub: Any) -> None:
    app._health.end()

    assert [NOT_SERVING] == [answer.status for answer in stub.Watch(_request())]


def test_watchers_beyond_the_limit_are_refused_and_checks_go_on(stub: Any) -> None:
    watches = [stub.Watch(_request()) for _ in range(_MOST_HEALTH_WATCHERS)]
    for watch in watches:
        next(watch)

    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(_request()))
    status = stub.Check(_request(), timeout=20).status
    for watch in watches:
        watch.cancel()

    error: Any = caught.value
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == error.code()
    assert SERVING == status


def test_a_storm_of_watches_leaves_a_server_that_answers_and_no_watcher(
    app: App, stub: Any
) -> None:
    """What deadlocks grpcio's own health service within seconds: grpc/grpc#43403."""
    over = threading.Event()

    def flip() -> None:
        serving_ = False
        while not over.wait(0.002):
            app._health.set_serving(serving=serving_)
            serving_ = not serving_

    def storm(address: str) -> None:
        with grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            own = health_pb2_grpc.HealthStub(channel)
            for number in range(300):
                watch = own.Watch(_request(NAMES[number % 2]))
                for _ in range(number % 3):
                    next(watch)
                watch.cancel()

    flipper = threading.Thread(target=flip)
    stormers = [threading.Thread(target=storm, args=(app.address,)) for _ in range(4)]
    for thread in (flipper, *stormers):
        thread.start()
    for thread in stormers:
        thread.join()
    over.set()
    flipper.join()
    app._health.set_serving(serving=True)

    assert SERVING == stub.Check(_request(), timeout=20).status
    with stub_of(app.address) as service:
        service.ListImages(pb.ListImagesRequest(), metadata=first_key(app), timeout=20)
    wait_until(lambda: not app._health._changes._watchers)
    watch = stub.Watch(_request(), timeout=20)
    assert SERVING == next(watch).status
    watch.cancel()


def test_watchers_that_take_no_answers_hold_up_nobody_and_not_the_stop(tmp_path: Path) -> None:
    """A stranger needs no key for this, and sends would wait for the stranger for ever."""
    with (
        contextlib.ExitStack() as after_the_stop,
        serving(tmp_path / "data", stop_grace=0.1) as app,
        stub_of(app.address) as service,
    ):
        paths = ["/grpc.health.v1.Health/Watch"] * 40
        after_the_stop.enter_context(calls_that_take_no_answer(app.port, paths))
        wait_until(lambda: 40 == sum(map(len, app._health._changes._watchers.values())))
        app._health.set_serving(serving=False)
        app._health.set_serving(serving=True)

        answer = service.ListImages(pb.ListImagesRequest(), metadata=first_key(app), timeout=20)

    assert answer is not None
