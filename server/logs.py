"""One line per event: its name, then facts; never a body, a key, or a query's text.

Events are logged with the standard library: the name as message, the facts in `extra`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What every record has anyway; all else came in through `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
#: Tokens, signing secrets and Clarifai's "Key ..." never reach a log, whoever logs them.
_SECRET: Final = re.compile(r"(pbk_|whsec_|Key )[A-Za-z0-9_\-+/=]{8,}")
#: What stands in a line of text as it is. All else is escaped, so that nothing moves a terminal's
#: cursor or begins a line of its own.
_PLAIN: Final = re.compile(r"[!#-<>-~]+")
#: Longest event and longest value in a line, in characters; a caller may have chosen them.
_MAX_CHARACTERS: Final = 1_000
#: For how long a record may wait for others to be written with, in seconds.
_LONGEST_WAIT: Final = 0.05
#: Records that may wait; whoever brings more waits for whoever reads the log.
_MOST_RECORDS: Final = 1000


def configure(*, level: str, json_lines: bool) -> None:
    """Log to standard error from now on, as text for people or as JSON for machines."""
    handler = _LineHandler(sys.stderr, _Formatter(json_lines=json_lines))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # No line tells them, and to find them out would be half the cost of a record. Source: Python's
    # Logging HOWTO, "Optimization".
    logging._srcfile = None  # noqa: SLF001 - the documented way
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # These say in many lines what our own events say in one.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def info(logger: logging.Logger, event: str, facts: Mapping[str, object]) -> None:
    """Log as ``logger.info(event, extra=facts)`` does, at a fraction of the cost.

    For what is logged at every call. Where lines are not ours to write, it is the same.
    """
    match logging.getLogger().handlers:
        case [_LineHandler() as handler]:
            if logger.isEnabledFor(logging.INFO):
                handler.take(_Note(time.time(), event, facts))
        case _:
            logger.info(event, extra=facts)


class _Note(NamedTuple):
    """What a line needs of a record at level INFO."""

    created: float
    event: str
    facts: Mapping[str, object]


class _LineHandler(logging.Handler):
    """Writes lines to *stream*, those of a moment together, on a thread of its own.

    Made and written one by one they were a fifth of what accepting a query costs: each thread
    waits for the one before it, and for Python's lock. What is urgent is not kept waiting: a
    warning and all before it are written when `emit` returns, and everything at exit. A process
    that is killed loses the lines of its last moment.
    """

    formatter: _Formatter

    def __init__(self, stream: TextIO, formatter: _Formatter) -> None:
        super().__init__()
        self.formatter = formatter
        self._stream = stream
        self._records: deque[logging.LogRecord | _Note] = deque()
        self._has_records = threading.Event()
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="picback-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, whose facts nobody changes any more."""
        self.take(record)
        if record.levelno >= logging.WARNING:
            self.flush()

    def take(self, record: logging.LogRecord | _Note) -> None:
        """Take what is not urgent."""
        self._records.append(record)
        if len(self._records) >= _MOST_RECORDS or self._ended.is_set():
            self.flush()
        elif not self._has_records.is_set():
            self._has_records.set()

    def flush(self) -> None:
        """Write what there is."""
        # Not the handler's own lock, which `emit` holds.
        with self._writing, suppress(OSError, ValueError):  # nobody reads any more
            text = "".join([self._line() for _ in range(len(self._records))])
            if text:
                self._stream.write(text)
                self._stream.flush()

    def close(self) -> None:
        """Write what there is, and whatever still comes at once."""
        self._ended.set()
        self._has_records.set()
        self._thread.join()
        self.flush()
        super().close()

    def _line(self) -> str:
        record = self._records.popleft()
        if isinstance(record, _Note):
            return self.formatter.line(record.created, "INFO", record.event, record.facts) + "\n"
        try:
            return self.format(record) + "\n"
        except Exception:  # noqa: BLE001 - as in every handler: whoever logs is not to blame
            self.handleError(record)
            return ""

    def _run(self) -> None:
        while not self._ended.is_set():
            self._has_records.wait()
            self._ended.wait(_LONGEST_WAIT)  # more will come
            self._has_records.clear()  # before they are taken: what comes then sets it again
            self.flush()


class _Formatter(logging.Formatter):
    def __init__(self, *, json_lines: bool) -> None:
        super().__init__()
        self._json_lines = json_lines

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; a traceback follows on lines of its own in text."""
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return self.line(record.created, record.levelname, record.getMessage(), facts, trace)

    def line(
        self,
        created: float,
        level: str,
        event: str,
        facts: Mapping[str, object],
        trace: str = "",
    ) -> str:
        """Return what *format* does, made of its parts."""
        at = datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds")
        event = _cut(event)
        if self._json_lines:
            whole: dict[str, Any] = {"time": at, "level": level.lower(), "event": event}
            whole.update((key, _cut(value)) for key, value in facts.items())
            if trace:
                whole["trace"] = trace
            line = json.dumps(whole, default=lambda value: _cut(str(value)), ensure_ascii=False)
        else:
            words = "".join([f" {key}={_readable(value)}" for key, value in facts.items()])
            line = f"{at} {level:<7} {event}{words}"
            if trace:
                line += f"\n{trace}"
        return _SECRET.sub(r"\1…", line)


def _cut(value: Any) -> Any:
    """Return *value*, shortened if it is a long text."""
    if isinstance(value, str) and len(value) > _MAX_CHARACTERS:
        return value[:_MAX_CHARACTERS] + "…"
    return value


def _readable(value: object) -> str:
    text: str = _cut(str(value))
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
