from __future__ import annotations

import io
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, as it was before when the test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def _raised(message: str) -> Any:
    """Return what `sys.exc_info` tells of an error that was raised."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        raise ValueError(message)
    return (caught.type, caught.value, caught.tb)


def _formatted(*, json_lines: bool, message: str = "it.happened", **facts: Any) -> str:
    record = logging.makeLogRecord(
        {"msg": message, "levelno": logging.INFO, "levelname": "INFO", "created": 0.25, **facts}
    )
    return logs._Formatter(json_lines=json_lines).format(record)


def test_text_is_one_line_of_time_level_event_and_facts() -> None:
    line = _formatted(json_lines=False, code="OK", ms=1.5, reason="")

    assert '1970-01-01T00:00:00.250+00:00 INFO    it.happened code=OK ms=1.5 reason=""' == line


def test_json_is_one_document_a_line() -> None:
    line = _formatted(json_lines=True, code="OK", ms=1.5, odd="a\nb")

    assert {
        "time": datetime.fromtimestamp(0.25, UTC).isoformat(timespec="milliseconds"),
        "level": "info",
        "event": "it.happened",
        "code": "OK",
        "ms": 1.5,
        "odd": "a\nb",
    } == json.loads(line)
    assert "\n" not in line


@pytest.mark.parametrize(
    "value", ["a b", 'a"b', "a=b", "a\nb", "\x1b[2J", "\x9b2J", "\u2028", "\u202e", "é", "", "\x7f"]
)
def test_an_odd_value_is_quoted_and_moves_no_cursor(value: str) -> None:
    line = _formatted(json_lines=False, odd=value)

    quoted = line.partition("odd=")[2]
    assert value == json.loads(quoted)
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.parametrize("json_lines", [False, True])
@pytest.mark.parametrize(
    "secret",
    [
        "pbk_" + "A" * 43 + "0123abcd",
        "whsec_" + "QUJD" * 8 + "==",
        "Key 0123456789abcdef0123456789abcdef",
    ],
)
def test_secrets_are_cut_wherever_they_stand(secret: str, json_lines: bool) -> None:  # noqa: FBT001 - from the table
    line = _formatted(
        json_lines=json_lines, message=f"x {secret}", fact=secret, exc_info=_raised(secret)
    )

    assert secret[10:] not in line
    assert 3 <= line.count("…") + line.count("\\u2026")
    assert "ValueError" in line


def test_a_traceback_is_kept_in_json() -> None:
    line = _formatted(json_lines=True, exc_info=_raised("no good"))

    assert "ValueError: no good" in json.loads(line)["trace"]


def test_logs_go_to_standard_error_from_the_level_on(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(level="warning", json_lines=True)

    root_logger.info("too.quiet")
    logging.getLogger("server.test").warning("loud.enough", extra={"code": 1})

    output = capsys.readouterr()
    assert not output.out
    assert ["loud.enough"] == [json.loads(line)["event"] for line in output.err.splitlines()]


class _Stream(io.StringIO):
    """Tells when something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def flush(self) -> None:
        self.written.set()


@pytest.fixture
def handler() -> Iterator[logs._LineHandler]:
    handler = logs._LineHandler(_Stream(), logs._Formatter(json_lines=False))
    yield handler
    handler.close()


def _lines(handler: logs._LineHandler) -> list[str]:
    """Return the events of the lines that were written."""
    assert isinstance(handler._stream, _Stream)
    return [line.split(maxsplit=2)[2] for line in handler._stream.getvalue().splitlines()]


def _log(handler: logs._LineHandler, message: str, level: int = logging.INFO) -> None:
    handler.handle(logging.makeLogRecord({"msg": message, "levelno": level, "levelname": "X"}))


@pytest.mark.parametrize("json_lines", [False, True])
def test_what_is_logged_at_every_call_looks_like_everything_else(
    root_logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    json_lines: bool,  # noqa: FBT001 - from the table
) -> None:
    logs.configure(level="info", json_lines=json_lines)
    facts = {"code": "OK", "odd": "a b", "ms": 1.5}

    root_logger.info("it.happened", extra=facts)
    logs.info(root_logger, "it.happened", facts)
    logs.info(logging.getLogger("server.test"), "it.happened", facts)
    root_logger.handlers[0].flush()

    first, second, third = (
        re.sub(r"\d{4}-\S+:\d\d", "TIME", line) for line in capsys.readouterr().err.splitlines()
    )
    assert first == second == third
    assert "it.happened" in first


def test_what_is_too_quiet_is_not_logged_at_any_call(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(level="warning", json_lines=False)

    logs.info(root_logger, "it.happened", {})
    root_logger.handlers[0].flush()

    assert not capsys.readouterr().err


def test_what_is_logged_at_every_call_goes_to_whatever_handlers_there_are(
    root_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    root_logger.setLevel(logging.INFO)
    logs.info(logging.getLogger("server.test"), "it.happened", {"code": "OK"})

    (record,) = caplog.records
    assert ("it.happened", "OK") == (record.getMessage(), vars(record)["code"])


def test_a_line_is_written_soon_without_anybody_doing_more(handler: logs._LineHandler) -> None:
    _log(handler, "a")

    assert isinstance(handler._stream, _Stream)
    assert handler._stream.written.wait(60)
    assert ["a"] == _lines(handler)


def test_a_warning_and_all_before_it_are_written_when_the_call_returns(
    handler: logs._LineHandler,
) -> None:
    for message in ("a", "b"):
        _log(handler, message)
    _log(handler, "c", logging.WARNING)

    assert ["a", "b", "c"] == _lines(handler)


def test_lines_are_written_at_once_when_too_many_wait(
    handler: logs._LineHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_LONGEST_WAIT", 600)  # nobody else writes them
    written = []
    for number in range(logs._MOST_RECORDS):
        _log(handler, f"{number}")
        written.append(len(_lines(handler)))

    assert [0] * (logs._MOST_RECORDS - 1) + [logs._MOST_RECORDS] == written


def test_no_line_is_lost_nor_out_of_its_threads_order(handler: logs._LineHandler) -> None:
    def log_some(thread: int) -> None:
        for number in range(300):
            _log(handler, f"{thread} {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(log_some, range(8)))
    handler.close()
    _log(handler, "8 0")

    found = [line.split() for line in _lines(handler)]
    assert len(found) == 8 * 300 + 1
    for thread in range(8):
        numbers = [int(number) for name, number in found if name == str(thread)]
        assert list(range(300)) == numbers


def test_a_log_that_nobody_reads_any_more_harms_nobody(handler: logs._LineHandler) -> None:
    handler._stream.close()

    _log(handler, "a", logging.ERROR)


def test_the_http_client_is_heard_for_warnings_only(root_logger: logging.Logger) -> None:
    logs.configure(level="debug", json_lines=False)

    assert logging.DEBUG == root_logger.level
    assert logging.WARNING == logging.getLogger("httpx").getEffectiveLevel()


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_line_is_short_whatever_a_caller_wrote(*, json_lines: bool) -> None:
    formatter = logs._Formatter(json_lines=json_lines)
    facts = {"text": "x" * 100_000, "path": Path("y" * 100_000)}

    line = formatter.line(0.0, "INFO", "e" * 100_000, facts)

    assert 3_500 > len(line)
