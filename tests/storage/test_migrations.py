"""A data directory of an earlier version opens, with what is in it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from analysis.images import Rendition
from storage.database import Database
from tests.fakes import START
from tests.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from storage.database import Connection


def _back_to_version_5(connection: Connection) -> None:
    connection.execute("DROP TABLE image_rendition")
    connection.execute("ALTER TABLE image DROP COLUMN interruptions")
    connection.execute("DELETE FROM _sqlite_migrations WHERE name >= 'm0006'")
    connection.execute("PRAGMA user_version=5").fetchall()


def test_images_of_version_5_are_there_have_no_renditions_and_take_some(tmp_path: Path) -> None:
    with closing(Database.own(tmp_path)) as database:
        image = Store(database).add_image(b"kept", tag_it=True)
        database.write(_back_to_version_5)
    with closing(Database.own(tmp_path)) as database:
        images = Store(database).images

        assert image == images.get(image.id)
        assert b"kept" == images.content(image.seq)
        assert images.rendition(image.seq, "PREVIEW") is None
        (lease,) = images.lease_for_tagging(limit=1, now=START)
        assert 0 == lease.interruptions
        images.add_renditions(image.seq, [Rendition("PREVIEW", 1, 1, b"made")])
        assert b"made" == images.rendition(image.seq, "PREVIEW")
