"""A tagger's child that says what the "preview" asks for, or ends."""

from __future__ import annotations

import os
import signal
import socket
import time

from analysis.processes import messages

if __name__ == "__main__":
    with socket.socket(fileno=0) as connection:
        messages.send(connection, {"ready": True})
        while True:
            _, (content,) = messages.receive(connection, max_blob_bytes=1000)
            match content:
                case b"crash":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case b"hang":
                    time.sleep(3600)
                case b"text":
                    messages.send(connection, {"outcome": "refused", "message": "No."})
                case _:
                    tags = [["dog", 500_000], ["cat", 900_000]]
                    messages.send(connection, {"outcome": "tagged", "tags": tags, "model": "m/1"})
