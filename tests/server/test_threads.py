"""A system that refuses another thread, and threads that die: in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_service_pb2 as pb
from picback.v1 import query_pb2
from server.app import App
from server.config import ConfigError
from server.thread_monitor import EXIT_CODE
from storage.database import Database
from storage.thread_pool import StartedPool
from tests.receiver import Receiver
from tests.server.serving import config_of, serve_command, stub_of
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Runs `picback serve`, and does something to it once a file is there.
SCRIPT = """
import os, sys, threading
import grpc._server
flag, what = sys.argv.pop(1), sys.argv.pop(1)
if what == "no new threads":
    start_new_thread = threading._start_new_thread
    def refuse(*arguments):
        if os.path.exists(flag):
            raise RuntimeError("can't start new thread")
        return start_new_thread(*arguments)
    threading._start_new_thread = refuse
else:
    process = grpc._server._process_event_and_continue
    def die(*arguments):
        if os.path.exists(flag):
            raise SystemExit
        return process(*arguments)
    grpc._server._process_event_and_continue = die
from server.cli import main
main()
"""


@contextmanager
def _serving(
    tmp_path: Path, what: str, *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], str, Any]]:
    """Serve in a process to which *what* happens when the file `flag` is there."""
    options = serve_command(tmp_path / "data", *arguments)[3:]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "flag"), what, *options]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            key = json.loads((tmp_path / "data/first-key.json").read_text())["key"]
            yield process, address, (("x-api-key", key),)
        finally:
            process.kill()


def test_a_server_that_gets_no_more_threads_serves_on_and_stops(tmp_path: Path) -> None:
    with (
        Receiver() as receiver,
        _serving(tmp_path, "no new threads", "--allow-callback", receiver.url.split("/")[2]) as (
            process,
            address,
            metadata,
        ),
        stub_of(address) as stub,
        grpc.insecure_channel(address) as channel,
        ThreadPoolExecutor(40) as callers,
    ):
        (tmp_path / "flag").touch()
        options: dict[str, Any] = {"metadata": metadata, "timeout": 60}

        uploads = [
            callers.submit(
                stub.UploadImage, pb.UploadImageRequest(content=picture(n), no_wait=True), **options
            )
            for n in range(40)
        ]
        queries = [
            callers.submit(
                stub.SubmitQuery,
                pb.SubmitQueryRequest(text="a dog", callback_url=receiver.url),
                **options,
            ).result()
            for _ in range(5)
        ]
        watches = [
            list(stub.WatchQuery(pb.WatchQueryRequest(query_id=each.query.id), **options))
            for each in queries
        ]
        health = health_pb2_grpc.HealthStub(channel)
        checks = [
            callers.submit(health.Check, health_pb2.HealthCheckRequest(), timeout=60)
            for _ in range(40)
        ]
        for each in (*uploads, *checks):
            each.result()
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)

    assert {query_pb2.QUERY_STATE_DELIVERED} == {watch[-1].query.state for watch in watches}
    assert 0 == code
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_server_whose_serving_thread_dies_ends_with_an_error(tmp_path: Path) -> None:
    with (
        _serving(tmp_path, "death") as (process, address, metadata),
        stub_of(address) as stub,
    ):
        (tmp_path / "flag").touch()
        call = stub.ListImages.future(pb.ListImagesRequest(), metadata=metadata)

        code = process.wait(30)

    assert grpc.StatusCode.OK != call.code()
    assert EXIT_CODE == code
    assert "server.thread_died" in (tmp_path / "log").read_text()


def test_a_pool_whose_threads_cannot_all_be_started_says_so_and_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_some(thread: threading.Thread) -> None:
        if len(started) == 3:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    pool = StartedPool(5, name="test")

    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.start()
    pool.shutdown(wait=True)

    assert [False] * 3 == [thread.is_alive() for thread in started]


def test_a_started_pool_has_all_its_threads() -> None:
    before = threading.active_count()
    pool = StartedPool(5, name="test")

    pool.start()
    threads = threading.active_count() - before
    pool.shutdown()

    assert 5 == threads


def test_a_server_that_does_not_get_its_threads_says_so_and_leaves_its_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    app = App(config_of(tmp_path / "data"))

    def start_few(thread: threading.Thread) -> None:
        if thread.name == "picback-watch_7":
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_few)

    with pytest.raises(ConfigError, match="not all threads can be started"):
        app.start()
    Database.own(tmp_path / "data").close()
