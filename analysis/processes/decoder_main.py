"""The child process that decodes images: `python -m analysis.processes.decoder_main`.

Its standard input is the socket that it shares with the server.
"""

from __future__ import annotations

import argparse
import socket
from typing import Any

from analysis.images import (
    DamagedPictureError,
    OversizedPictureError,
    PictureError,
    UnsupportedPictureError,
)
from analysis.pictures import LargePictureError, PictureReader
from analysis.processes import limits, messages

#: Most bytes of one image: SQLite's and gRPC's own limits lie above.
_MAX_IMAGE_BYTES = 500_000_000
#: What of the address space is not left for pixels: Python, Pillow, and two copies of the file.
_OWN_BYTES = 64_000_000
_KINDS = {
    UnsupportedPictureError: "unsupported",
    DamagedPictureError: "damaged",
    OversizedPictureError: "oversized",
}


def main() -> None:
    """Decode one image after the other, until the server closes the socket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parent", type=int)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--max-pixels", type=int, required=True)
    options = parser.parse_args()
    reader = PictureReader(
        max_pixels=options.max_pixels, max_memory_bytes=max(1, options.memory - _OWN_BYTES)
    )
    limits.confine(parent=options.parent)
    limits.limit_memory(options.memory)
    with socket.socket(fileno=0) as connection:
        messages.send(connection, {"ready": True})
        while True:
            try:
                request, (content,) = messages.receive(connection, max_blob_bytes=_MAX_IMAGE_BYTES)
            except EOFError:
                return
            fields, blobs = _respond(reader, request, content)
            del content
            messages.send(connection, fields, blobs)


def _respond(
    reader: PictureReader, request: dict[str, Any], content: bytes
) -> tuple[dict[str, Any], list[bytes]]:
    limits.limit_cpu(request["cpu_seconds"])
    try:
        with limits.less_memory(request["memory"]):
            found = reader.decode(content, large_from_bytes=request["large_from_bytes"])
    except LargePictureError:
        return {"outcome": "large"}, []
    except MemoryError:
        return {"outcome": "memory"}, []
    except PictureError as error:
        outcome = _KINDS[type(error)]
        return {"outcome": outcome, "message": str(error), "limit": getattr(error, "limit", 0)}, []
    finally:
        limits.limit_cpu(0)
    picture, renditions = found.picture, (found.preview, found.thumbnail)
    return {
        "outcome": "decoded",
        "picture": [picture.media_type, picture.width, picture.height],
        "sizes": [[each.width, each.height] for each in renditions],
    }, [each.content for each in renditions]


if __name__ == "__main__":
    main()
