"""One line per event: its name, then facts; never a body, a key, or a query's text.

Events are logged with the standard library: the name as message, the facts in `extra`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final

#: What every record has anyway; all else came in through `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
#: Tokens, signing secrets and Clarifai's "Key ..." never reach a log, whoever logs them.
_SECRET: Final = re.compile(r"(pbk_|whsec_|Key )[A-Za-z0-9_\-+/=]{8,}")


def configure(*, level: str, json_lines: bool) -> None:
    """Log to standard error from now on, as text for people or as JSON for machines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(json_lines=json_lines))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These say in many lines what our own events say in one.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


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
