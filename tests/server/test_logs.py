from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
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


def test_the_http_client_is_heard_for_warnings_only(root_logger: logging.Logger) -> None:
    logs.configure(level="debug", json_lines=False)

    assert logging.DEBUG == root_logger.level
    assert logging.WARNING == logging.getLogger("httpx").getEffectiveLevel()
