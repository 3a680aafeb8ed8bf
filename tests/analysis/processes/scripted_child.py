"""A decoder's child that does what the first word of an image says, then decodes the rest."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from analysis.processes import decoder_main

if TYPE_CHECKING:
    from analysis.pictures import PictureReader

_decode = decoder_main._respond


def _respond(
    reader: PictureReader, request: dict[str, Any], content: bytes
) -> tuple[dict[str, Any], list[bytes]]:
    verb, _, rest = content.partition(b" ")
    match verb:
        case b"signal":
            os.kill(os.getpid(), int(rest))
        case b"exit":
            os._exit(int(rest))
        case b"hang":
            time.sleep(3600)
        case b"garbage":
            os.write(0, b"\xff" * 100)
            time.sleep(3600)
        case b"pause":
            time.sleep(0.2)
            content = rest
        case b"environment":
            return {"outcome": "damaged", "message": " ".join(sorted(os.environ))}, []
        case b"loop":
            return _decode(_Looping(), request, rest)  # type: ignore[arg-type]
        case b"swell":
            return _decode(_Swelling(), request, rest)  # type: ignore[arg-type]
    return _decode(reader, request, content)


class _Looping:
    def decode(self, *_: object, **__: object) -> None:
        while True:
            pass


class _Swelling:
    def decode(self, *_: object, **__: object) -> None:
        bytearray(10_000_000_000)


if __name__ == "__main__":
    decoder_main._respond = _respond
    decoder_main.main()
