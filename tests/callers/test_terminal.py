"""The callers' commands as processes: terminals, pipes and Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from callers.tables import one_line
from picback.v1 import image_service_pb2
from tests.callers.fake_service import FakeService, serving
from tests.service import picture

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service import Service

PICBACK = [sys.executable, "-m", "server"]


def _environment(service: Service) -> dict[str, str]:
    return {
        **os.environ,
        "PICBACK_ADDRESS": service.address,
        "PICBACK_API_KEY": service.api_key,
        "TERM": "xterm-256color",
        "COLUMNS": "100",
    }


def _on_a_terminal(service: Service, *arguments: str, **streams: Any) -> str:
    """Run `picback` with a terminal for the streams that *streams* does not name."""
    ours, theirs = pty.openpty()
    environment = _environment(service)
    process = subprocess.Popen(
        [*PICBACK, *arguments],
        stdin=subprocess.DEVNULL,
        env=environment,
        **{"stdout": theirs, "stderr": theirs, **streams},
    )
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the last process that had it open has ended
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(30) == 0
    return seen.decode()


def test_on_a_terminal_there_is_a_bar_and_a_table_with_colours(
    service: Service, tmp_path: Path
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    shown = _on_a_terminal(service, "upload", str(tmp_path), "--tag", "a rather long name " * 5)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)

    assert "uploading" in plain
    assert "2/2" in plain
    assert "\x1b[32mREADY" in shown
    assert "a rather long name a" in plain
    assert "\u2026" in plain  # cut to the terminal's width
    assert 100 >= max(len(line) for line in re.split(r"[\r\n]+", plain))


def test_in_a_pipe_there_are_neither_bar_nor_colours(service: Service, tmp_path: Path) -> None:
    tag = "a rather long name " * 5
    (tmp_path / "1.png").write_bytes(picture(10))
    (tmp_path / "2.txt").write_bytes(b"no image")
    result = subprocess.run(
        [*PICBACK, "upload", f"{tmp_path}/1.png", f"{tmp_path}/2.txt", "--tag", tag],
        env=_environment(service),
        capture_output=True,
        text=True,
        check=False,
    )

    assert "\x1b" not in result.stdout + result.stderr
    assert "uploading" not in result.stdout + result.stderr
    assert tag.strip() in result.stdout


def test_the_bar_never_comes_between_the_documents_of_json(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "1.png").write_bytes(picture(20))
    piped = tmp_path / "piped"
    with piped.open("w") as stdout:
        shown = _on_a_terminal(service, "upload", f"{tmp_path}/1.png", "--json", stdout=stdout)
    both = _on_a_terminal(service, "upload", f"{tmp_path}/1.png", "--json")

    assert "uploading" in shown
    assert 1 == piped.read_text().count("\n")
    assert piped.read_text().startswith('{"file": ')
    assert both.startswith('{"file": ')
    assert "\x1b" not in both


def test_ctrl_c_ends_a_watch_quietly_with_130(calling_service: Service) -> None:
    request = image_service_pb2.SubmitQueryRequest(text="wait", callback_url="http://127.0.0.1:1/")
    query_id = calling_service.stub.SubmitQuery(request, metadata=calling_service.metadata).query.id
    with subprocess.Popen(
        [*PICBACK, "queries", "watch", query_id],
        env=_environment(calling_service),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert first.startswith(query_id)
    assert (130, "") == (process.returncode, errors)


def test_ctrl_c_ends_uploads_under_way(service: Service, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    arrived, release = threading.Event(), threading.Event()

    def hang() -> None:
        arrived.set()
        release.wait()

    fake = FakeService(during_upload=hang)
    with (
        serving(fake) as address,
        subprocess.Popen(
            [*PICBACK, "upload", str(tmp_path), "--address", address],
            env=_environment(service),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert arrived.wait(60)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=20)  # well before the calls' deadline
        release.set()

    assert ("", "") == output
    assert 130 == process.returncode
    assert 4 >= len(fake.requests)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("größer 🐼 と", "größer 🐼 と"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202eright to left", r"\u202eright to left"),  # would turn the rest of the line round
        ("\udcff", r"\udcff"),  # from a file name that is not UTF-8
    ],
)
def test_what_could_play_tricks_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert shown == one_line(text)
