"""`picback serve` as people and service managers run it: a process of its own."""

from __future__ import annotations

import json
import logging
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from click.testing import CliRunner

from picback.v1 import image_service_pb2 as pb
from server.cli import main
from server.home_core import allowed_cores
from tests.receiver import Receiver
from tests.server.refusals import refused
from tests.server.serving import serve_command, serve_process, serving, stub_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_server_tells_its_address_leaves_its_first_key_and_stops_when_asked(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    with serve_process(folder, "--stop-grace", "600") as server, stub_of(server.address) as stub:
        mode = stat.S_IMODE((folder / "first-key.json").stat().st_mode)
        keys = server.first_key
        stub.ListImages(pb.ListImagesRequest(), metadata=server.metadata)
        with pytest.raises(grpc.RpcError):
            stub.ListImages(pb.ListImagesRequest())
        server.process.send_signal(signal.SIGTERM)
        output, errors = server.process.communicate()

    assert server.first_line == f"picback is serving on {server.address}\n"
    assert server.address.startswith("127.0.0.1:")
    assert ["id", "key", "signing_secret"] == list(keys)
    assert 0o600 == mode
    assert 0 == server.process.returncode
    # Nothing but the first line goes to stdout, and no secret to the log.
    assert not output
    events = [line.split()[2] for line in errors.splitlines()]
    assert ["server.started", "rpc.finished", "rpc.finished"] == events[:3]
    assert ["server.stopping", "server.stopped"] == events[3:]
    assert keys["key"] not in errors
    assert keys["signing_secret"] not in errors


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads cannot be told where to be")
@pytest.mark.parametrize("option", ["any", "auto", *map(str, sorted(allowed_cores())[-1:])])
def test_threads_that_run_python_share_a_core_unless_that_is_not_wanted(
    tmp_path: Path, option: str
) -> None:
    allowed = allowed_cores()
    with serve_process(tmp_path / "data", "--core", option) as server:
        main_thread = server.process.pid
        threads = [int(task.name) for task in Path(f"/proc/{main_thread}/task").iterdir()]
        cores = {thread: frozenset(os.sched_getaffinity(thread)) for thread in threads}

    assert allowed == cores.pop(main_thread)
    bound = {each for each in cores.values() if each != allowed}
    if option == "any" or len(allowed) == 1:
        assert not bound
    else:
        (home,) = bound
        assert 1 == len(home)
        assert option in ("auto", str(*home))


def test_a_server_logs_json_when_asked_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    environment = {"PICBACK_LOG_FORMAT": "json", "PICBACK_LOG_LEVEL": "info"}
    with serve_process(tmp_path / "data", environment=environment) as server:
        server.process.send_signal(signal.SIGINT)
        output, errors = server.process.communicate()

    assert 0 == server.process.returncode
    assert not output
    assert ["server.started", "server.stopping", "server.stopped"] == [
        json.loads(line)["event"] for line in errors.splitlines()
    ]


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    leave = threading.Event()

    def hang(_: object) -> tuple[int, dict[str, str], bytes]:
        leave.wait()
        return 200, {}, b""

    with Receiver(hang) as receiver:
        allowed = ["--allow-callback", receiver.address, "--callback-timeout", "600"]
        with serve_process(tmp_path / "data", *allowed) as server:
            with stub_of(server.address) as stub:
                stub.SubmitQuery(
                    pb.SubmitQueryRequest(text="a dog", callback_url=receiver.url),
                    metadata=server.metadata,
                )
            receiver.wait_for(1)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.stderr is not None
            while "server.stopping" not in server.process.stderr.readline():
                pass  # it waits for the attempt now
            server.process.send_signal(signal.SIGTERM)
            server.process.communicate()
        leave.set()

    assert -signal.SIGTERM == server.process.returncode


def test_a_first_key_is_shown_on_a_terminal_and_left_nowhere_else(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        serve_command(tmp_path / "data"),
        stdin=subprocess.DEVNULL,
        stdout=end,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(end)
        shown = b""
        while b"not shown again" not in shown:
            shown += os.read(terminal, 1000)
        process.terminate()
        code = process.wait()
    os.close(terminal)

    lines = shown.decode().splitlines()
    assert lines[0].startswith("picback is serving on 127.0.0.1:")
    assert {"id", "key", "signing"} <= {line.split()[0] for line in lines if line}
    assert 0 == code
    assert not (tmp_path / "data/first-key.json").exists()


def test_a_restart_makes_no_second_key(tmp_path: Path) -> None:
    with serve_process(tmp_path / "data") as server:
        key_file = server.folder / "first-key.json"
        key_file.unlink()
        server.process.send_signal(signal.SIGTERM)
        server.process.communicate()
    with serve_process(tmp_path / "data") as server:
        assert server.first_line.startswith("picback is serving")

    assert not key_file.exists()


def test_a_first_key_is_not_written_where_others_prepared_a_place(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "elsewhere").write_text("kept")
    (folder / "first-key.json").symlink_to(tmp_path / "elsewhere")
    with serve_process(folder) as server:
        mode = stat.S_IMODE((folder / "first-key.json").lstat().st_mode)
        key = server.first_key["key"]

    assert 0o600 == mode
    assert key.startswith("pbk_")
    assert "kept" == (tmp_path / "elsewhere").read_text()


@pytest.fixture
def own_process() -> Iterator[None]:
    """Whatever `serve` does to its process is undone: here it is the tests'."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    signal.set_wakeup_fd(-1)
    for each, handler in signals.items():
        signal.signal(each, handler)


FILES = {"empty": b"", "binary": b"\xff\xfe", "secret": b"a secret\n", "token": b"t\n"}
#: Arguments and variables, and what is told of them. FILES may stand in them.
CANNOT_WORK: list[tuple[list[str], dict[str, str], str]] = [
    (["--listen", "0.0.0.0:0"], {}, "can be reached by other machines"),
    (["--listen", "nonsense"], {}, "listen must be HOST:PORT, not 'nonsense'"),
    ([], {"PICBACK_LISTEN": "nonsense"}, "listen must be HOST:PORT, not 'nonsense'"),
    (["--allow-callback", "8.8.8.8/32"], {}, "allowed callback '8.8.8.8/32'"),
    ([], {"PICBACK_ALLOW_CALLBACK": "10.0.0.0/8 localhost"}, "'localhost' lacks a port"),
    (["--tls-cert", "{binary}"], {}, "--tls-cert and --tls-key belong together"),
    (["--tls-client-ca", "{binary}"], {}, "--tls-client-ca needs --tls-cert"),
    (["--tls-cert", "{binary}", "--tls-key", "{binary}"], {}, "cannot use TLS with {binary}"),
    (["--tagger", "clarifai"], {}, "needs a personal access token (CLARIFAI_PAT)"),
    (["--clarifai-pat-file", "{empty}"], {}, "holds neither a secret alone nor JSON"),
    (["--clarifai-pat-file", "{binary}"], {}, "holds neither a secret alone nor JSON"),
    (["--clarifai-pat-file", "{secret}"], {}, "holds neither a secret alone nor JSON"),
    (
        ["--clarifai-pat-file", "{token}"],
        {"CLARIFAI_GRPC_BASE": "http://x"},
        "Clarifai's base is host or host:port",
    ),
    (
        [],
        {"CLARIFAI_PAT": "t", "CLARIFAI_GRPC_BASE": "x/y"},
        "Clarifai's base is host or host:port",
    ),
    (["--pipeline", "no_such_pipeline"], {}, "no_such_pipeline"),
    (["--callback-timeout", "nan"], {}, "callback_timeout must be from 0.1 to 86,400"),
    (["--stop-grace", "-1"], {}, "stop_grace must be from 0 to 86,400"),
    (["--max-image-bytes", "0"], {}, "max_image_bytes must be from 1 to 500,000,000"),
    ([], {"PICBACK_MAX_IMAGE_PIXELS": "0"}, "max_image_pixels must be from 1 to 178,956,970"),
    (["--data", "{binary}/data"], {}, "Not a directory"),
    (["--core", "fastest"], {}, "core must be auto, any, or one that this process may use"),
    ([], {"PICBACK_CORE": "99999"}, "core must be auto, any, or one that this process may use"),
]


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(("arguments", "variables", "message"), CANNOT_WORK)
def test_what_cannot_work_ends_in_one_line_and_a_code(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    paths = {name: str(tmp_path / name) for name in FILES}
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    environment = {
        "PICBACK_DATA": str(tmp_path / "data"),
        "PICBACK_LISTEN": "127.0.0.1:0",
        **variables,
    }

    result = CliRunner().invoke(
        main, ["serve", *(each.format(**paths) for each in arguments)], env=environment
    )

    assert 1 == result.exit_code
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message.format(**paths) in line


def test_a_taken_port_or_folder_is_told_in_one_line_too(tmp_path: Path) -> None:
    """By a process of its own, of which gRPC's core would write to stderr as well."""
    with serving(tmp_path / "data") as app:
        for arguments, message in (
            (["--listen", app.address], f"cannot listen on {app.address}: the port is taken"),
            (["--data", str(tmp_path / "data")], "another picback serve owns the data folder"),
        ):
            command = serve_command(tmp_path / "other", *arguments)
            done = subprocess.run(command, capture_output=True, text=True, check=False)

            assert 1 == done.returncode
            assert not done.stdout
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"Error: {message}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tagger", "google"],
        ["--max-image-bytes", "many"],
        ["--log-level", "loud"],
        ["--tls-cert", "missing.pem"],
        ["--clarifai-pat-file", "missing"],
        ["--no-such-option"],
        ["argument"],
    ],
)
def test_a_malformed_command_line_is_told_by_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["serve", *arguments])

    assert 2 == result.exit_code
    assert "Error: " in result.stderr
    assert not result.stdout


def test_the_program_tells_its_version_and_commands() -> None:
    version = CliRunner().invoke(main, ["--version"])
    overview = CliRunner().invoke(main, ["-h"])

    assert version.output.startswith("picback, version ")
    assert {"serve", "keys", "upload", "match", "query", "queries", "listen"} <= set(
        overview.output.split()
    )


def test_streams_and_attempts_do_not_keep_a_server_from_stopping(tmp_path: Path) -> None:
    options = ["--stop-grace", "600", "--allow-callback", "127.0.0.1:1"]
    with serve_process(tmp_path / "data", *options) as server, stub_of(server.address) as stub:
        query = stub.SubmitQuery(
            pb.SubmitQueryRequest(text="a dog", callback_url="http://127.0.0.1:1/"),
            metadata=server.metadata,
        ).query
        watch = stub.WatchQuery(pb.WatchQueryRequest(query_id=query.id), metadata=server.metadata)
        next(watch)
        server.process.send_signal(signal.SIGTERM)
        server.process.communicate()
        refusal = refused(lambda: list(watch))

    assert 0 == server.process.returncode
    assert "SHUTTING_DOWN" == refusal.reason
