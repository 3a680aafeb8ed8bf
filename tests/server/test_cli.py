"""`picback serve` as people and service managers run it: a process of its own."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import click
import grpc
import pytest
from click.testing import CliRunner

from picback.v1 import image_service_pb2 as pb
from server.cli import main
from tests.receiver import Receiver
from tests.server.serving import serve_command, serve_process, serving, stub_of

if TYPE_CHECKING:
    from pathlib import Path


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


def _fails(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_what_cannot_work_ends_in_one_line_and_a_code(tmp_path: Path) -> None:
    """All at once: each takes a second to load its libraries."""
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.touch()
    binary.write_bytes(b"\xff\xfe")
    (tmp_path / "file").touch()
    with serving(tmp_path / "served") as app:
        cases: list[tuple[list[str], dict[str, str], str]] = [
            (["--listen", app.address], {}, f"cannot listen on {app.address}: the port is taken"),
            (
                ["--data", str(tmp_path / "served")],
                {},
                "another picback serve owns the data folder",
            ),
            (["--listen", "0.0.0.0:0"], {}, "can be reached by other machines"),
            ([], {"PICBACK_LISTEN": "nonsense"}, ""),  # the option counts more: this one works
            (["--listen", "nonsense"], {}, "listen must be HOST:PORT, not 'nonsense'"),
            (["--allow-callback", "8.8.8.8/32"], {}, "allowed callback '8.8.8.8/32'"),
            ([], {"PICBACK_ALLOW_CALLBACK": "10.0.0.0/8 localhost"}, "'localhost' lacks a port"),
            (["--tls-cert", str(binary)], {}, "--tls-cert and --tls-key belong together"),
            (["--tls-client-ca", str(binary)], {}, "--tls-client-ca needs --tls-cert"),
            (
                ["--tls-cert", str(binary), "--tls-key", str(binary)],
                {},
                f"cannot use TLS with {binary}",
            ),
            (["--tagger", "clarifai"], {}, "needs a personal access token (CLARIFAI_PAT)"),
            (["--clarifai-pat-file", str(empty)], {}, "holds neither a secret alone nor JSON"),
            (["--clarifai-pat-file", str(binary)], {}, "holds neither a secret alone nor JSON"),
            (
                ["--tagger", "auto"],
                {"CLARIFAI_PAT": "t", "CLARIFAI_GRPC_BASE": "http://x"},
                "Clarifai's base is host or host:port",
            ),
            (["--pipeline", "no_such_pipeline"], {}, "no_such_pipeline"),
            (["--callback-timeout", "nan"], {}, "callback_timeout must be from 0.1 to 86,400"),
            (["--max-image-bytes", "0"], {}, "max_image_bytes must be from 1 to 500,000,000"),
            (["--data", str(tmp_path / "file/data")], {}, "cannot use the data folder"),
        ]
        processes = [
            _fails(serve_command(tmp_path / str(number), *arguments), environment)
            for number, (arguments, environment, _) in enumerate(cases)
        ]
        for process, (arguments, _, message) in zip(processes, cases, strict=True):
            if not message:
                process.terminate()
            output, errors = process.communicate()
            if message:
                assert not output, arguments
                assert 1 == process.returncode, errors
                (line,) = errors.splitlines()
                assert line.startswith("Error: "), errors
                assert message in line


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
    with serve_process(
        tmp_path / "data", "--stop-grace", "600", "--allow-callback", "127.0.0.1:1"
    ) as server:
        channel = grpc.insecure_channel(server.address)
        with stub_of(server.address) as stub:
            query = stub.SubmitQuery(
                pb.SubmitQueryRequest(text="a dog", callback_url="http://127.0.0.1:1/"),
                metadata=server.metadata,
            ).query
            watch: Any = stub.WatchQuery(
                pb.WatchQueryRequest(query_id=query.id), metadata=server.metadata
            )
            next(watch)
            server.process.send_signal(signal.SIGTERM)
            server.process.communicate()
            code = watch.code()
        channel.close()

    assert 0 == server.process.returncode
    assert grpc.StatusCode.UNAVAILABLE == code


def test_every_command_is_listed_with_the_first_line_of_its_own_help() -> None:
    listed = CliRunner().invoke(main, ["--help"], terminal_width=200).output
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None

        assert command.get_short_help_str(limit=70) in listed
