"""The child process of the local tagger: `python -m analysis.processes.tagger_main`.

Its standard input is the socket that it shares with the server.
"""

from __future__ import annotations

import argparse
import ctypes
import socket
from typing import Any, Final

from analysis.processes import limits, messages
from analysis.taggers import Tagged, TaggerLoadError
from analysis.taggers.local import LocalTagger

#: Most bytes of one preview.
_MAX_IMAGE_BYTES: Final = 16_000_000


def main() -> None:
    """Tag one preview after the other, until the server closes the socket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parent", type=int)
    parser.add_argument("--memory", type=int, required=True)
    options = parser.parse_args()
    with socket.socket(fileno=0) as connection:
        limits.confine(parent=options.parent)
        try:
            tagger = LocalTagger()
        except TaggerLoadError as error:
            messages.send(connection, {"error": str(error)})
            return
        limits.limit_memory(options.memory)
        _trim()
        messages.send(connection, {"ready": True})
        while True:
            try:
                request, (content,) = messages.receive(connection, max_blob_bytes=_MAX_IMAGE_BYTES)
            except EOFError:
                return
            messages.send(connection, _respond(tagger, request, content))


def _respond(tagger: LocalTagger, request: dict[str, Any], content: bytes) -> dict[str, Any]:
    limits.limit_cpu(request["cpu_seconds"])
    try:
        (outcome,) = tagger.tag([content], timeout=request["cpu_seconds"])
    finally:
        limits.limit_cpu(0)
    if isinstance(outcome, Tagged):
        tags = [[tag.name, tag.confidence] for tag in outcome.tags]
        return {"outcome": "tagged", "tags": tags, "model": outcome.model}
    return {"outcome": "refused", "message": outcome.message}


def _trim() -> None:
    """Give back what loading the models took, where the C library can."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


if __name__ == "__main__":
    main()
