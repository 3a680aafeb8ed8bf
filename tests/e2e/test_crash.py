"""What survives when the process does not: SIGKILL in the middle of work, then a restart."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from picback.v1 import image_pb2, image_service_pb2, image_service_pb2_grpc, query_pb2
from tests.receiver import Receiver
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.receiver import Received

QUERIES = 200


@contextmanager
def _serving(folder: Path, receiver: Receiver) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [
        sys.executable,
        "-m",
        "server",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--tagger",
        "none",
    ]
    with subprocess.Popen(
        [*command, "--data", str(folder), "--allow-callback", receiver.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def _submit_until_it_dies(address: str, api_key: str, url: str, accepted: set[str]) -> None:
    """Submit from 16 threads; only what was answered counts as accepted."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(16) as callers:
        stub = image_service_pb2_grpc.ImageServiceStub(channel)

        def submit(number: int) -> None:
            try:
                response = stub.SubmitQuery(
                    image_service_pb2.SubmitQueryRequest(
                        text="the dog", callback_url=url, request_id=f"r{number}"
                    ),
                    metadata=(("x-api-key", api_key),),
                    timeout=20,
                )
            except grpc.RpcError:
                return
            accepted.add(response.query.id)

        list(callers.map(submit, range(QUERIES)))


def test_every_accepted_query_is_delivered_although_the_server_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    content = picture(7)
    enough = threading.Event()
    received: list[Received] = []

    def answer(request: Received) -> tuple[int, dict[str, str], bytes]:
        received.append(request)
        if len(received) >= 40:
            enough.set()
        return 200, {}, b""

    with Receiver(answer) as receiver:
        accepted: set[str] = set()
        with _serving(folder, receiver) as (process, address):
            api_key = json.loads((folder / "first-key.json").read_text())["key"]
            with grpc.insecure_channel(address) as channel:
                image_service_pb2_grpc.ImageServiceStub(channel).UploadImage(
                    image_service_pb2.UploadImageRequest(
                        content=content, tags=[image_pb2.Tag(name="dog")]
                    ),
                    metadata=(("x-api-key", api_key),),
                )
            crowd = threading.Thread(
                target=_submit_until_it_dies, args=(address, api_key, receiver.url, accepted)
            )
            crowd.start()
            assert enough.wait(60)
            process.kill()
            process.wait()
            crowd.join()
        before_the_restart = {request.headers["webhook-id"] for request in received}
        missing = accepted - before_the_restart

        with _serving(folder, receiver) as (_, address), grpc.insecure_channel(address) as channel:
            stub = image_service_pb2_grpc.ImageServiceStub(channel)
            for query_id in accepted:
                stream = stub.WatchQuery(
                    image_service_pb2.WatchQueryRequest(query_id=query_id),
                    metadata=(("x-api-key", api_key),),
                    timeout=60,
                )
                states = [response.query.state for response in stream]
                assert query_pb2.QUERY_STATE_DELIVERED == states[-1]

    bodies = defaultdict(set)
    for request in received:
        bodies[request.headers["webhook-id"]].add(request.body)
    assert accepted, "the crowd got nothing accepted, so the test showed nothing"
    assert missing <= set(bodies)
    assert accepted <= set(bodies)
    assert {1} == {len(different) for different in bodies.values()}
    assert all(
        content == base64.b64decode(json.loads(body)["result"]) for (body,) in bodies.values()
    )
