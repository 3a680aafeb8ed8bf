"""What silent calls and unread responses of one key, and of callers without one, cost another key.

`python -m tests.front_attack` starts a server on loopback and compares the response times of health and of a
key's calls with what they are in the same run without the attack. Everything is bounded in time
and count, and nothing but loopback is called.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from picback.v1 import image_pb2, image_service_pb2_grpc
from picback.v1 import image_service_pb2 as pb
from server.interceptors import SCOPES
from tests.server.raw_http2 import SilentCalls, calls_that_take_no_answer
from tests.service import picture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HEALTH = [f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")]
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
#: Silent calls on each connection.
PER_CONNECTION = 250


class Server:
    """`picback serve` with two keys, and what the key that is not attacking calls."""

    def __init__(self, folder: Path, undo: ExitStack) -> None:
        log = undo.enter_context((folder / "log").open("w"))
        command = [sys.executable, "-m", "server", "serve", "--tagger", "none"]
        command += ["--listen", "127.0.0.1:0", "--data", str(folder / "data")]
        command += ["--allow-callback", "127.0.0.1:9"]
        self.process = undo.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        )
        undo.callback(self.process.kill)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.port = int(self.address.rpartition(":")[2])
        first = json.loads((folder / "data/first-key.json").read_text())
        self.attacker = (("x-api-key", first["key"]),)
        command = [sys.executable, "-m", "server", "keys", "create", "other", "--json"]
        command += ["--data", str(folder / "data")]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        self.metadata = (("x-api-key", json.loads(made.stdout)["key"]),)
        time.sleep(1)  # until the server knows it
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = undo.enter_context(grpc.insecure_channel(self.address, options))
        self.stub = image_service_pb2_grpc.ImageServiceStub(self.channel)

    def rss_mb(self) -> float:
        """Return the memory that the server has in use."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def calls(self) -> Mapping[str, Callable[[], object]]:
        """Return what to measure, by name."""
        content = iter(range(1_000_000))
        tags = [image_pb2.Tag(name="dog")]
        first = self._call("UploadImage", pb.UploadImageRequest(content=picture(), tags=tags))
        submit = pb.SubmitQueryRequest(text="dog", callback_url="http://127.0.0.1:9/")
        query = self._call("SubmitQuery", submit).query
        health = health_pb2_grpc.HealthStub(self.channel)
        watch = pb.WatchQueryRequest(query_id=query.id)
        calls: dict[str, Callable[[], object]] = {
            "health Check": lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=20),
            "UploadImage": lambda: self._call(
                "UploadImage", pb.UploadImageRequest(content=picture(next(content)), tags=tags)
            ),
            "WatchQuery": lambda: next(
                self.stub.WatchQuery(watch, metadata=self.metadata, timeout=20)
            ),
        }
        requests = {
            "GetImage": pb.GetImageRequest(image_id=first.image.id),
            "GetImageContent": pb.GetImageContentRequest(image_id=first.image.id),
            "ListImages": pb.ListImagesRequest(page_size=10),
            "MatchImages": pb.MatchImagesRequest(text="a dog"),
            "SubmitQuery": submit,
            "GetQuery": pb.GetQueryRequest(query_id=query.id),
            "ListQueries": pb.ListQueriesRequest(page_size=10),
        }
        for method, request in requests.items():
            calls[method] = lambda method=method, request=request: self._call(method, request)  # type: ignore[misc] # mypy reads no defaults of lambdas
        return calls

    def _call(self, method: str, request: Any) -> Any:
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=20)


def measured(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Make *calls* in turn for *seconds*; return how many milliseconds each took."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, call in calls.items():
            started = time.monotonic()
            call()
            taken[name].append((time.monotonic() - started) * 1000)
        time.sleep(0.01)  # leaves the processors to the attack
    return taken


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def attack(port: int, key: tuple[tuple[str, str], ...], silent: int, seconds: float) -> None:
    """Keep *silent* calls of *key* and as many without a key open for *seconds*."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        sides = [
            ("key", key, [*SCOPES, REFLECTION]),
            ("no key", (), [*HEALTH, *HEALTH, *HEALTH, *list(SCOPES)[:2]]),
        ]
        made = {}
        for name, metadata, paths in sides:
            each = list(islice(cycle(paths), silent))
            made[name] = [
                SilentCalls(each[start : start + PER_CONNECTION], metadata=metadata)
                for start in range(0, silent, PER_CONNECTION)
            ]
            for calls in made[name]:
                await loop.create_connection(lambda calls=calls: calls, "127.0.0.1", port)  # type: ignore[misc] # as above
        await asyncio.sleep(seconds)
        for name, all_ in made.items():
            print(f"silent calls opened, {name}: {sum(each.opened for each in all_)}", flush=True)

    asyncio.run(run())


def compare(quiet: Mapping[str, Sequence[float]], attacked: Mapping[str, Sequence[float]]) -> None:
    """Print the response times of each call, and their ratio."""
    print(f"{'':18}{'calls':>7}{'p50':>8}{'p99':>8}{'max':>8}   quiet p99   ratio")
    for name in [*attacked, "all"]:
        values, before = (
            each.get(name) or list(chain.from_iterable(each.values())) for each in (attacked, quiet)
        )
        ratio = p99(values) / p99(before)
        print(
            f"{name:18}{len(values):7}{statistics.median(values):8.2f}{p99(values):8.2f}"
            f"{max(values):8.2f}{p99(before):12.2f}{ratio:8.2f}"
        )


def main() -> None:
    """Run both attacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each attack (at most 600)")
    parser.add_argument("--silent", type=int, default=1_000, help="silent calls of each side")
    parser.add_argument("--unread", type=int, default=1_000, help="unread responses")
    parser.add_argument("--attack-port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--attack-key", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = min(options.seconds, 600)
    silent = min(options.silent, 4_000)
    if options.attack_port:
        attack(options.attack_port, (("x-api-key", options.attack_key),), silent, seconds)
        return
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        server = Server(folder, undo)
        calls = server.calls()
        measured(calls, 2)  # warm
        quiet = measured(calls, seconds / 2)
        command = [sys.executable, "-m", "tests.front_attack", "--seconds", str(seconds + 3)]
        command += ["--silent", str(silent), "--attack-port", str(server.port)]
        command += ["--attack-key", server.attacker[0][1]]
        with subprocess.Popen(command):
            time.sleep(1)
            attacked = measured(calls, seconds)
            tasks = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
            print(f"threads of the server: {tasks}")
        compare(quiet, attacked)
        unread(server, calls, min(options.unread, 4_000), undo)
        server.process.terminate()
        print(f"exit code after SIGTERM: {server.process.wait(30)}")


def unread(
    server: Server, calls: Mapping[str, Callable[[], object]], count: int, undo: ExitStack
) -> None:
    """Leave *count* responses of 19.5 MB unread, and tell what memory they take."""
    image = server.stub.UploadImage(
        pb.UploadImageRequest(content=picture(size=(2550, 2550), format_="BMP")),
        metadata=server.attacker,
    ).image
    message = pb.GetImageContentRequest(image_id=image.id).SerializeToString()
    paths = ["/picback.v1.ImageService/GetImageContent"] * PER_CONNECTION
    before = server.rss_mb()
    peaks = [before]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peaks.append(server.rss_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(count // PER_CONNECTION):
        undo.enter_context(
            calls_that_take_no_answer(server.port, paths, metadata=server.attacker, message=message)
        )
    taken = measured(calls, 10)
    over.set()
    watcher.join()
    print(f"unread responses: {count}; RSS before {before:.0f} MB, at most {max(peaks):.0f} MB")
    all_taken = list(chain.from_iterable(taken.values()))
    print(f"meanwhile p99 of all calls of another key: {p99(all_taken):.2f} ms")


if __name__ == "__main__":
    main()
