from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_pb2, image_service_pb2_grpc
from picback.v1 import image_service_pb2 as pb
from server.app import App
from server.config import ClarifaiSettings, ConfigError
from storage.database import Database
from storage.errors import FolderInUseError, UnusableDatabaseError
from tests.server.refusals import refusal_of
from tests.server.serving import config_of, first_key, serving, stub_of
from tests.service import picture

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = "http://127.0.0.1:1/callback"
ALLOWED = ("127.0.0.1:1",)


def test_port_0_picks_a_free_port_and_the_address_names_it(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as one, serving(tmp_path / "two") as two:
        assert f"127.0.0.1:{one.port}" == one.address
        assert one.port != two.port


def test_a_second_server_on_the_same_port_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as app:
        config = config_of(tmp_path / "two", listen=app.address)

        with pytest.raises(ConfigError, match=f"cannot listen on {app.address}: the port is taken"):
            App(config)

    with serving(tmp_path / "two", listen=app.address):  # nor does the refused one hold anything
        pass


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder), pytest.raises(FolderInUseError, match=f"owns the data folder {folder}"):
        App(config_of(folder))


def test_a_folder_with_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picback.db").write_bytes(b"a diary, not a database\n" * 1000)

    with pytest.raises(UnusableDatabaseError):
        App(config_of(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"listen": "192.0.2.1:50051", "insecure": True}, "cannot listen on 192.0.2.1:50051"),
        ({"pipeline": "no_such_pipeline"}, "no_such_pipeline"),
        ({"allow_callback": ("8.8.8.0/24",)}, "allow_callback: .*8.8.8.0/24"),
        ({"allow_callback": ("localhost",)}, "allow_callback: .*localhost.* lacks a port"),
        (
            {"clarifai": ClarifaiSettings(token="t", base="http://x/"), "tagger": "auto"},
            "host or host:port",
        ),
        ({"clarifai": ClarifaiSettings(token="a b"), "tagger": "clarifai"}, "Clarifai token"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts_and_leaves_the_folder_free(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        App(config_of(tmp_path / "data", **options))

    Database.own(tmp_path / "data").close()


def test_the_first_key_is_made_once(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as app:
        first = app.make_first_key()
        second = app.make_first_key()
        app.api_keys.revoke("default", now=1)
        third = app.make_first_key()
    with serving(tmp_path / "data") as app:
        fourth = app.make_first_key()

    assert first is not None
    assert [None, None, None] == [second, third, fourth]


def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    def everything(stub: Any, metadata: Any) -> list[Any]:
        images = stub.ListImages(pb.ListImagesRequest(), metadata=metadata).images
        queries = stub.ListQueries(pb.ListQueriesRequest(), metadata=metadata).queries
        contents = [
            stub.GetImageContent(pb.GetImageContentRequest(image_id=image.id), metadata=metadata)
            for image in images
        ]
        matches = stub.MatchImages(pb.MatchImagesRequest(text="dogs"), metadata=metadata)
        return [images, queries, contents, matches]

    folder = tmp_path / "data"
    with serving(folder, allow_callback=ALLOWED) as app, stub_of(app.address) as stub:
        metadata = first_key(app)
        for seed in range(3):
            stub.UploadImage(
                pb.UploadImageRequest(content=picture(seed), tags=[image_pb2.Tag(name="dog")]),
                metadata=metadata,
            )
        query = stub.SubmitQuery(
            pb.SubmitQueryRequest(text="dog", callback_url=NOBODY, request_id="once"),
            metadata=metadata,
        ).query
        stub.CancelQuery(pb.CancelQueryRequest(query_id=query.id), metadata=metadata)
        before = everything(stub, metadata)
    with serving(folder, allow_callback=ALLOWED) as app, stub_of(app.address) as stub:
        after = everything(stub, metadata)
        again = stub.SubmitQuery(
            pb.SubmitQueryRequest(text="dog", callback_url=NOBODY, request_id="once"),
            metadata=metadata,
        )

    assert before == after
    assert 3 == len(after[0])
    assert (False, query.id) == (again.created, again.query.id)


def test_open_streams_are_told_of_the_stop_and_do_not_hold_it_up(tmp_path: Path) -> None:
    """A grace that is longer than the test may take."""
    options: dict[str, Any] = {"stop_grace": 600.0, "allow_callback": ALLOWED}
    with serving(tmp_path / "data", **options) as app:
        metadata = first_key(app)
        channel = grpc.insecure_channel(app.address)  # stays open while the server stops
        stub = image_service_pb2_grpc.ImageServiceStub(channel)
        query = stub.SubmitQuery(
            pb.SubmitQueryRequest(text="dog", callback_url=NOBODY), metadata=metadata
        ).query
        watches = [
            stub.WatchQuery(pb.WatchQueryRequest(query_id=query.id), metadata=metadata)
            for _ in range(10)
        ]
        health = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            for _ in range(10)
        ]
        for stream in (*watches, *health):
            next(stream)

    for watch in watches:
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
        refusal = refusal_of(caught.value)
        assert ("SHUTTING_DOWN", 2.0) == (refusal.reason, refusal.retry_after)
    assert [[health_pb2.HealthCheckResponse.NOT_SERVING]] * 10 == [
        [answer.status for answer in stream] for stream in health
    ]
    channel.close()


def test_a_call_to_a_stopping_server_is_told_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as app, stub_of(app.address) as stub:
        metadata = first_key(app)
        app._stopping.set()

        with pytest.raises(grpc.RpcError) as caught:
            stub.ListImages(pb.ListImagesRequest(), metadata=metadata)
        with pytest.raises(grpc.RpcError) as stranger:
            stub.ListImages(pb.ListImagesRequest())

    refusal = refusal_of(caught.value)
    assert grpc.StatusCode.UNAVAILABLE == refusal.code
    assert ("SHUTTING_DOWN", "2000") == (
        refusal.reason,
        refusal.trailers["grpc-retry-pushback-ms"],
    )
    assert "API_KEY_MISSING" == refusal_of(stranger.value).reason


def test_calls_that_race_the_stop_fail_in_a_way_that_says_retry_and_nothing_accepted_is_lost(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    accepted: list[str] = []
    codes: collections.Counter[grpc.StatusCode] = collections.Counter()
    busy = threading.Barrier(9)

    def submit(address: str, metadata: Any, number: int) -> None:
        with stub_of(address) as stub:
            for turn in range(1_000_000):
                request = pb.SubmitQueryRequest(text=f"dog {number} {turn}", callback_url=NOBODY)
                try:
                    query = stub.SubmitQuery(request, metadata=metadata, timeout=30).query
                except grpc.RpcError as error:
                    codes[error.code()] += 1
                    return
                accepted.append(query.id)
                if turn == 5:
                    busy.wait()

    with serving(folder, allow_callback=ALLOWED) as app:
        arguments = (app.address, first_key(app))
        callers = [threading.Thread(target=submit, args=(*arguments, n)) for n in range(8)]
        for caller in callers:
            caller.start()
        busy.wait()
    for caller in callers:
        caller.join()
    with serving(folder, allow_callback=ALLOWED) as app, stub_of(app.address) as stub:
        kept = [
            stub.GetQuery(pb.GetQueryRequest(query_id=id_), metadata=arguments[1]).query.id
            for id_ in accepted
        ]

    assert 8 == codes.total()
    assert codes.keys() <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert accepted == kept
    assert len(accepted) >= 48


def test_a_call_that_grpc_has_lost_track_of_does_not_keep_the_server_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.app._STOP_MARGIN", 0.1)

    with serving(tmp_path / "data", stop_grace=0.0) as app:
        app._server._state.rpc_states.add(object())  # type: ignore[attr-defined] # as its bugs do

    assert "server.calls_left" in caplog.messages
    Database.own(tmp_path / "data").close()
