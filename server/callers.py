"""The commands of callers, for `server.cli` to register; how they work stands beside this."""

from server.image_commands import images
from server.query_commands import match, queries, query
from server.upload_command import upload

__all__ = ["images", "match", "queries", "query", "upload"]
