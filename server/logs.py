"""One line per event: its name, then facts; never a body, a key, or a query's text.

Events are logged with the standard library: the name as message, the facts in `extra`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TextIO

#: What every record has anyway; all else came in through `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
#: Tokens, signing secrets and Clarifai's "Key ..." never reach a log, whoever logs them.
_SECRET: Final = re.compile(r"(pbk_|whsec_|Key )[A-Za-z0-9_\-+/=]{8,}")
#: For how long a line may wait for others to be written with, in seconds.
_LONGEST_WAIT: Final = 0.05
#: Lines that may wait; whoever brings more waits for whoever reads them.
_MOST_LINES: Final = 1000


def configure(*, level: str, json_lines: bool) -> None:
    """Log to standard error from now on, as text for people or as JSON for machines."""
    handler = _LineHandler(sys.stderr)
    handler.setFormatter(_Formatter(json_lines=json_lines))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These say in many lines what our own events say in one.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _LineHandler(logging.Handler):
    """Writes lines to *stream*, those of a moment together, on a thread of its own.

    Written one by one they were a fifth of what accepting a query costs, for each thread waited
    for the one before it, and for Python's lock. What is urgent is not kept waiting: a warning
    and all before it are written when `emit` returns, and everything at exit. A process that is
    killed loses the lines of its last moment.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque()
        self._has_lines = threading.Event()
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="picback-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        try:
            self._lines.append(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as in every handler: whoever logs is not to blame
            self.handleError(record)
        is_urgent = record.levelno >= logging.WARNING or len(self._lines) >= _MOST_LINES
        if is_urgent or self._ended.is_set():
            self.flush()
        elif not self._has_lines.is_set():
            self._has_lines.set()

    def flush(self) -> None:
        """Write what there is."""
        # Not the handler's own lock, which `emit` holds.
        with self._writing, suppress(OSError, ValueError):  # nobody reads any more
            text = "".join([self._lines.popleft() for _ in range(len(self._lines))])
            if text:
                self._stream.write(text)
                self._stream.flush()

    def close(self) -> None:
        """Write what there is, and whatever still comes at once."""
        self._ended.set()
        self._has_lines.set()
        self._thread.join()
        self.flush()
        super().close()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._has_lines.wait()
            self._ended.wait(_LONGEST_WAIT)  # more will come
            self._has_lines.clear()  # before they are taken: whatever comes then sets it again
            self.flush()


class _Formatter(logging.Formatter):
    def __init__(self, *, json_lines: bool) -> None:
        super().__init__()
        self._json_lines = json_lines

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; a traceback follows on lines of its own in text."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._json_lines:
            whole: dict[str, Any] = {
                "time": time,
                "level": record.levelname.lower(),
                "event": record.getMessage(),
                **facts,
            }
            if trace:
                whole["trace"] = trace
            line = json.dumps(whole, default=str, ensure_ascii=False)
        else:
            words = "".join(f" {key}={_readable(value)}" for key, value in facts.items())
            line = f"{time} {record.levelname:<7} {record.getMessage()}{words}"
            if trace:
                line += f"\n{trace}"
        return _SECRET.sub(r"\1…", line)


def _readable(value: object) -> str:
    text = str(value)
    # Escaped, so that nothing moves a terminal's cursor or begins a line of its own.
    return text if re.fullmatch(r"[!#-<>-~]+", text) else json.dumps(text)
