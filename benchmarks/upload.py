"""Row `upload`: storing photos of 300 KB, against a loop that does no more than must be done.

The loop decodes the bytes with Pillow, writes them to a file, syncs it and renames it: what anyone
would do without a service. It does one at a time, so the product is measured one at a time as well
as with several uploads under way. Every upload is another image, told apart by a comment in the
JPEG. The server has no tagger, so it does all that ``no_wait`` waits for and nothing else.
"""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from benchmarks import pictures
from benchmarks.harness import Figure, Findings, Target, median_of, paired, ratios
from benchmarks.load import calls_per_second
from benchmarks.service import serving
from picback.v1 import image_service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import grpc

    from benchmarks.harness import Setup
    from benchmarks.service import Service

SIZE_BYTES: Final = 300_000
#: As many uploads at once as a client on two cores has reason to make.
IN_FLIGHT: Final = 4


def measure(setup: Setup) -> Findings:
    """Compare images stored per second."""
    count = setup.size(120, 20)
    files = pictures.distinct(pictures.photo(SIZE_BYTES))
    folder = setup.scratch / "files"
    folder.mkdir()
    with serving(setup.scratch / "upload") as service:

        def upload(in_flight: int) -> float:
            return calls_per_second(
                lambda: _upload(service, next(files)), calls=count, in_flight=in_flight
            )

        contestants: dict[str, Callable[[], float]] = {
            "loop": lambda: _write_files(folder, files, count),
            "one": lambda: upload(1),
            "several": lambda: upload(IN_FLIGHT),
        }
        for warm in contestants.values():
            warm()
        runs = paired(setup.runs, contestants)
    baseline = "a loop that decodes, writes, syncs and renames the same bytes"
    absolute = {"files/s of the loop": median_of(runs, "loop")}
    return Findings(
        figures=[
            Figure(
                title=f"UploadImage of 300 KB, no_wait, {IN_FLIGHT} in flight",
                baseline=baseline,
                unit="x",
                runs=ratios(runs, "several", "loop"),
                target=Target(must=0.5, goal=0.9),
                details={"uploads/s": median_of(runs, "several"), **absolute},
            ),
            Figure(
                title="UploadImage of 300 KB, no_wait, 1 in flight",
                baseline=baseline,
                unit="x",
                runs=ratios(runs, "one", "loop"),
                details={"uploads/s": median_of(runs, "one"), **absolute},
            ),
        ]
    )


def _upload(service: Service, content: bytes) -> grpc.Future[Any]:
    request = image_service_pb2.UploadImageRequest(content=content, no_wait=True)
    return service.stub.UploadImage.future(request, metadata=service.metadata)


def _write_files(folder: Path, files: Iterator[bytes], count: int) -> float:
    begun = time.perf_counter()
    for number in range(count):
        content = next(files)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
        unfinished = folder / "unfinished"
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(folder / f"{number}.jpg")
    return count / (time.perf_counter() - begun)
