"""What a stranger can make the server hold in memory."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from picback.v1 import image_service_pb2 as pb
from tests.server.serving import serve_process, stub_of

if TYPE_CHECKING:
    from tests.server.serving import ServeProcess

STRANGERS = 10
UPLOAD_BYTES = 20_000_000


def _kilobytes(server: ServeProcess, entry: str) -> int:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == entry:
            return int(value.split()[0])
    raise KeyError(entry)


def _upload_without_a_key(address: str, begin: threading.Barrier, codes: list[Any]) -> None:
    with stub_of(address) as stub:
        request = pb.UploadImageRequest(content=b"\xff\xd8\xff" + bytes(UPLOAD_BYTES - 3))
        begin.wait()
        codes.append(stub.UploadImage.future(request, timeout=60).code())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")
def test_ten_strangers_uploads_at_once_are_not_taken_in(tmp_path: Path) -> None:
    with serve_process(tmp_path / "data") as server:
        with stub_of(server.address) as stub:  # so that what the first call needs is there
            stub.ListImages(pb.ListImagesRequest(), metadata=server.metadata, timeout=60)
        before = _kilobytes(server, "VmRSS")
        codes: list[Any] = []
        begin = threading.Barrier(STRANGERS)
        strangers = [
            threading.Thread(target=_upload_without_a_key, args=(server.address, begin, codes))
            for _ in range(STRANGERS)
        ]
        for stranger in strangers:
            stranger.start()
        for stranger in strangers:
            stranger.join()
        most = _kilobytes(server, "VmHWM")

    assert [grpc.StatusCode.UNAUTHENTICATED] * STRANGERS == codes
    # 200 MB were sent, or would have been.
    assert most - before < 30_000
