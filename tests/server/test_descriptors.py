"""Whatever holds descriptors, calls, health and callbacks go on, and no attempt is spent on it."""

from __future__ import annotations

import resource
import select
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from picback.v1 import image_service_pb2, query_pb2
from server.config import ConfigError
from server.connections import Connection, surplus
from server.descriptors import RECOMMENDED_LIMIT, share_out
from tests.many_receivers import ManyReceivers
from tests.server.serving import serve_process, serving, stub_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.server.serving import ServeProcess

RECEIVERS = 400
STRANGERS = 1_000
#: The first bytes of every HTTP/2 client.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEADLINE = 30.0  # far more than is needed: only what fails waits so long


@pytest.fixture(autouse=True)
def _enough_for_the_other_side() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def strangers(address: str, *, count: int = STRANGERS, say: bytes = b"") -> Iterator[list[Any]]:
    """Keep *count* connections open that say no more than *say*."""
    host, _, port = address.rpartition(":")
    with ExitStack() as connections:
        opened = []
        for _ in range(count):
            stranger = connections.enter_context(socket.create_connection((host, int(port)), 10))
            stranger.sendall(say)
            opened.append(stranger)
        yield opened


def environment(receivers: ManyReceivers) -> dict[str, str]:
    return {
        "PICBACK_ALLOW_CALLBACK": " ".join(receivers.addresses),
        "PICBACK_LOG_LEVEL": "warning",  # nobody reads the pipe while it runs
    }


def health_of(address: str) -> int:
    """Ask on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=DEADLINE, wait_for_ready=True
        )
    return int(answer.status)


def submit_to_all(served: ServeProcess, receivers: ManyReceivers) -> list[str]:
    with stub_of(served.address) as stub:
        return [
            stub.SubmitQuery(
                image_service_pb2.SubmitQueryRequest(text="a dog", callback_url=url),
                metadata=served.metadata,
                timeout=DEADLINE,
                wait_for_ready=True,
            ).query.id
            for url in receivers.urls
        ]


def endings(served: ServeProcess, ids: list[str]) -> set[tuple[int, int]]:
    """Return states and numbers of attempts, when all have ended."""
    found = set()
    with stub_of(served.address) as stub:
        for id_ in ids:
            request = image_service_pb2.WatchQueryRequest(query_id=id_)
            *_, last = stub.WatchQuery(request, metadata=served.metadata, timeout=DEADLINE)
            found.add((last.query.state, len(last.query.attempts)))
    return found


@pytest.mark.parametrize("limit", [256, RECOMMENDED_LIMIT])
def test_more_receivers_than_descriptors_are_all_called_back_at_the_first_attempt(
    tmp_path: Path, limit: int
) -> None:
    with ManyReceivers(RECEIVERS) as receivers:
        allowed = environment(receivers)
        with serve_process(tmp_path, environment=allowed, max_files=limit) as served:
            ids = []
            for round_ in (1, 2):
                ids += submit_to_all(served, receivers)
                assert receivers.wait_for(round_)
            ended = endings(served, ids)

            assert health_pb2.HealthCheckResponse.SERVING == health_of(served.address)
            assert {(query_pb2.QUERY_STATE_DELIVERED, 1)} == ended
            assert receivers.open < limit


@pytest.mark.parametrize("limit", [256, RECOMMENDED_LIMIT])
def test_silent_strangers_keep_nobody_from_being_served(tmp_path: Path, limit: int) -> None:
    with ManyReceivers(20) as receivers:
        allowed = environment(receivers)
        with (
            serve_process(tmp_path, environment=allowed, max_files=limit) as served,
            strangers(served.address),
        ):
            ids = submit_to_all(served, receivers)

            assert health_pb2.HealthCheckResponse.SERVING == health_of(served.address)
            assert {(query_pb2.QUERY_STATE_DELIVERED, 1)} == endings(served, ids)


def test_connections_beyond_the_callers_share_are_closed_and_callbacks_go_on(
    tmp_path: Path,
) -> None:
    with ManyReceivers(100) as receivers:
        allowed = environment(receivers)
        with serve_process(tmp_path, environment=allowed, max_files=256) as served:
            with stub_of(served.address) as stub:
                request = image_service_pb2.ListQueriesRequest()
                stub.ListQueries(request, metadata=served.metadata, timeout=DEADLINE)
                with strangers(served.address, count=400, say=PREFACE) as opened:
                    wait_until_closed(opened, 400 - share_out(256, 64).callers)
                    ids = [
                        stub.SubmitQuery(
                            image_service_pb2.SubmitQueryRequest(text="dog", callback_url=url),
                            metadata=served.metadata,
                            timeout=DEADLINE,
                        ).query.id
                        for url in receivers.urls
                    ]
                    assert receivers.wait_for(1)

            assert {(query_pb2.QUERY_STATE_DELIVERED, 1)} == endings(served, ids)


def wait_until_closed(opened: list[socket.socket], count: int) -> None:
    """Return when the server has closed *count* connections."""
    poll = select.poll()
    waiting = {each.fileno(): each for each in opened}
    for each in opened:
        each.settimeout(0)
        poll.register(each, select.POLLIN)
    while len(opened) - len(waiting) < count:
        ready = poll.poll(1000 * DEADLINE)
        assert ready
        for descriptor, _ in ready:
            with suppress(ConnectionResetError):
                if waiting[descriptor].recv(65536):
                    continue  # settings
            poll.unregister(descriptor)
            del waiting[descriptor]


#: And what makes a connection of HTTP/2: empty settings.
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def test_strangers_who_open_http2_and_make_no_call_make_room_for_callers(tmp_path: Path) -> None:
    with ManyReceivers(1) as receivers:
        address = receivers.addresses[0]
    allowed = {"PICBACK_ALLOW_CALLBACK": address}  # where nobody listens any more
    with (
        serve_process(tmp_path, environment=allowed, max_files=256) as served,
        stub_of(served.address) as stub,
    ):
        query = stub.SubmitQuery(
            image_service_pb2.SubmitQueryRequest(text="dog", callback_url=f"http://{address}/"),
            metadata=served.metadata,
        ).query
        request = image_service_pb2.WatchQueryRequest(query_id=query.id)
        watching = stub.WatchQuery(request, metadata=served.metadata)
        next(watching)
        with strangers(served.address, count=400, say=PREFACE + SETTINGS):
            for _ in range(3):
                assert health_pb2.HealthCheckResponse.SERVING == health_of(served.address)

        assert watching.is_active()


@given(
    st.lists(
        st.builds(
            Connection,
            descriptor=st.integers(),
            address=st.tuples(st.sampled_from("abc"), st.integers(1, 9)),
            received=st.integers(0, 3),
            silent=st.sampled_from([0.0, 1.9, 2.0, 60.0]),
        )
    ),
    st.integers(0, 20),
)
def test_only_what_is_silent_and_too_much_is_closed(
    connections: list[Connection], keep: int
) -> None:
    closed = surplus(connections, keep=keep)

    silent = [each for each in connections if each.silent >= 2]
    assert len(closed) == min(max(0, len(connections) - keep), len(silent))
    assert all(each in silent for each in closed)


def test_the_peer_with_most_connections_loses_them_and_what_said_most_stays() -> None:
    def connection(number: int, peer: str, received: int) -> Connection:
        return Connection(descriptor=number, address=(peer, number), received=received, silent=60)

    many = [connection(number, "stranger", received=33) for number in range(9)]
    caller = connection(9, "stranger", received=5_000)
    other = connection(10, "other", received=33)

    closed = surplus([caller, *many, other], keep=3)

    assert 8 == len(closed)
    assert not {caller.descriptor, other.descriptor} & {each.descriptor for each in closed}


@pytest.mark.parametrize("say", [b"P", PREFACE], ids=["a byte", "no settings"])
def test_a_connection_whose_handshake_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: bytes
) -> None:
    monkeypatch.setattr("server.app._HANDSHAKE_SECONDS", 0.2)
    with serving(tmp_path) as app, strangers(app.address, count=5, say=say) as opened:
        for stranger in opened:
            stranger.settimeout(DEADLINE)
            while stranger.recv(1024):  # it ends, or the test does by a TimeoutError
                pass

        assert health_pb2.HealthCheckResponse.SERVING == health_of(app.address)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    program = (
        "import resource; from server import descriptors; descriptors.raise_limit();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    printed = subprocess.run(
        [
            "sh",
            "-c",
            'ulimit -Sn 300 && ulimit -Hn 700 && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            program,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert "(700, 700)" == printed.strip()


def test_a_server_that_may_open_too_few_files_says_how_many_it_needs(tmp_path: Path) -> None:
    with serve_process(tmp_path, max_files=128) as served:
        assert served.process.stderr is not None
        message = served.process.stderr.read()

    assert "may open 128 files" in message
    assert f"{RECOMMENDED_LIMIT:,}" in message


def test_a_low_limit_is_logged_once(tmp_path: Path) -> None:
    with serve_process(tmp_path, max_files=256) as served:
        served.process.terminate()
        assert served.process.stderr is not None
        lines = served.process.stderr.read().splitlines()

    (line,) = [line for line in lines if "descriptors.few" in line]
    assert "limit=256" in line
    assert "recommended=1024" in line


@given(st.integers(0, 2**31), st.integers(1, 200))
def test_shares_never_exceed_the_limit(limit: int, delivery_threads: int) -> None:
    try:
        shares = share_out(limit, delivery_threads)
    except ConfigError:
        assert limit < 512
    else:
        used = 2 * shares.readers + shares.idle_callbacks + shares.callers + delivery_threads
        assert used + 64 <= limit
        assert min(shares.readers, shares.idle_callbacks, shares.callers) > 0
