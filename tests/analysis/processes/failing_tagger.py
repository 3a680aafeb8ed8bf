"""A tagger's child whose models cannot be loaded."""

from __future__ import annotations

import socket

from analysis.processes import messages

if __name__ == "__main__":
    with socket.socket(fileno=0) as connection:
        messages.send(connection, {"error": "tags.tsv is not the file that MANIFEST lists"})
