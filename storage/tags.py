"""Tags of images, whoever gave them, and the feed by which the matcher stays fresh.

A caller's opinion of a tag stands over the model's; a caller's confidence of 0 takes the
tag away. Every change of an image's tags appends to the feed in the same transaction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from storage.database import Connection, Database


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTag:
    """A tag of an image, as it counts in matching."""

    name: str
    #: Millionths, 1 to 1,000,000.
    confidence: int
    #: "CALLER" or "MODEL".
    source: str
    #: Empty for tags of callers.
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TagName:
    """A tag's name, with its keys when the asking lemmatizer has computed them."""

    id: int
    name: str
    keys: tuple[str, ...] | None


#: An image's number and its postings: (tag id, confidence in millionths). No postings when
#: the image has no tags, or is gone.
Postings = tuple[int, list[tuple[int, int]]]


class Tags:
    """What the matcher reads. Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def watermark(self) -> int:
        """Return the feed's end: `changed_since` this gives only what changes from now on."""
        rows = self._database.read("SELECT seq FROM sqlite_sequence WHERE name = 'tagging'")
        return int(rows[0][0]) if rows else 0

    def changed_since(self, watermark: int) -> tuple[int, list[Postings]]:
        """Return the feed's end and the postings of all images changed after *watermark*."""
        rows = self._database.read(
            "SELECT seq, image_seq FROM tagging WHERE seq > ? ORDER BY seq", (watermark,)
        )
        if not rows:
            return watermark, []
        # The postings are read after the feed: they may be newer than it says, never older.
        changed = {image_seq for _, image_seq in rows}
        found = _postings(
            self._database.read(
                _EFFECTIVE + " WHERE image_seq IN (SELECT value FROM json_each(?))" + _ORDER,
                (json.dumps(sorted(changed)),),
            )
        )
        return rows[-1][0], [(seq, found.get(seq, [])) for seq in changed]

    def all_rows(self) -> Iterator[list[tuple[int, int, int]]]:
        """Yield image number, tag id and confidence of all tags, some images at a time.

        Sorted by image, then by tag. Of two rows of a tag the first, the caller's, counts; one
        with confidence 0 takes the tag away.
        """
        last = self._database.read("SELECT coalesce(max(seq), 0) FROM image")[0][0]
        for first in range(1, last + 1, _IMAGES_AT_ONCE):
            rows = self._database.read(
                _EFFECTIVE + " WHERE image_seq BETWEEN ? AND ?" + _ORDER,
                (first, first + _IMAGES_AT_ONCE - 1),
            )
            if rows:
                yield rows

    @property
    def index_folder(self) -> Path:
        """Where the matcher keeps its index: beside the database, from which it can be made anew."""
        return self._database.folder / "index"

    def index(self) -> tuple[str, int] | None:
        """Return the name of the index that goes with this database, and its place in the feed."""
        rows = self._database.read("SELECT value FROM setting WHERE name = 'index'")
        if not rows:
            return None
        name, watermark = json.loads(rows[0][0])
        return str(name), int(watermark)

    def set_index(self, name: str, watermark: int) -> None:
        """Say which index goes with this database; the feed up to its place is needed no more.

        Said here rather than in the index, so that a database brought back from a backup does
        not meet an index that knows of a time it has not lived.
        """
        value = json.dumps([name, watermark]).encode()

        def operation(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO setting (name, value) VALUES ('index', ?1)"
                " ON CONFLICT DO UPDATE SET value = ?1",
                (value,),
            )
            connection.execute("DELETE FROM tagging WHERE seq <= ?", (watermark,))

        self._database.write(operation)

    def names(self, *, after: int, keys_by: str) -> list[TagName]:
        """Return the tags with ids above *after*, with the keys that *keys_by* computed."""
        return [
            TagName(id=id_, name=name, keys=None if keys is None else tuple(json.loads(keys)))
            for id_, name, keys in self._database.read(
                "SELECT id, name, CASE WHEN keys_by = ? THEN keys END FROM tag WHERE id > ?"
                " ORDER BY id",
                (keys_by, after),
            )
        ]

    def set_keys(self, keys: Mapping[int, Sequence[str]], *, keys_by: str) -> None:
        """Keep the keys that lemmatizer *keys_by* computed: tag id -> keys."""
        rows = [(json.dumps(words), keys_by, id_) for id_, words in keys.items()]
        self._database.write(
            lambda connection: (
                connection.executemany(
                    "UPDATE tag SET keys = ?, keys_by = ? WHERE id = ?", rows
                ).rowcount
            )
        )


def set_by_caller(connection: Connection, image_seq: int, tags: Mapping[str, int]) -> None:
    """Set tags of an image by hand: name -> confidence (millionths; 0 takes it away)."""
    _upsert(connection, image_seq, tags, source="CALLER", model="")
    announce(connection, image_seq)


def set_by_model(
    connection: Connection, image_seq: int, tags: Mapping[str, int], *, model: str
) -> None:
    """Replace what a model said of an image: name -> confidence (millionths)."""
    connection.execute(
        "DELETE FROM image_tag WHERE image_seq = ? AND source = 'MODEL'", (image_seq,)
    )
    _upsert(connection, image_seq, tags, source="MODEL", model=model)
    announce(connection, image_seq)


def announce(connection: Connection, image_seq: int) -> None:
    """Append to the feed that an image's tags have changed."""
    connection.execute("INSERT INTO tagging (image_seq) VALUES (?)", (image_seq,))


def read_of(database: Database, image_seqs: Iterable[int]) -> dict[int, tuple[ImageTag, ...]]:
    """Return the tags of images, best first, then by name: image number -> tags."""
    rows = database.read(
        "SELECT image_seq, name, source, confidence, model FROM image_tag"
        " JOIN tag ON tag.id = tag_id WHERE image_seq IN (SELECT value FROM json_each(?))"
        # CALLER sorts before MODEL, so the first row of a tag is the one that counts.
        " ORDER BY image_seq, tag_id, source",
        (json.dumps(list(image_seqs)),),
    )
    found: dict[int, dict[str, ImageTag]] = {}
    for image_seq, name, source, confidence, model in rows:
        found.setdefault(image_seq, {}).setdefault(
            name, ImageTag(name=name, confidence=confidence, source=source, model=model)
        )
    return {
        image_seq: tuple(
            sorted(
                (tag for tag in tags.values() if tag.confidence > 0),
                key=lambda tag: (-tag.confidence, tag.name),
            )
        )
        for image_seq, tags in found.items()
    }


#: Some 300,000 rows, or 50 MB of Python's tuples.
_IMAGES_AT_ONCE: Final = 16_384

_EFFECTIVE = "SELECT image_seq, tag_id, confidence FROM image_tag"
_ORDER = " ORDER BY image_seq, tag_id, source"


def _postings(rows: Iterable[tuple[int, int, int]]) -> dict[int, list[tuple[int, int]]]:
    """Group *rows*, sorted so that of a tag's two rows the caller's comes first."""
    found: dict[int, list[tuple[int, int]]] = {}
    before = None
    for image_seq, tag_id, confidence in rows:
        if (image_seq, tag_id) != before and confidence > 0:
            found.setdefault(image_seq, []).append((tag_id, confidence))
        before = (image_seq, tag_id)
    return found


def _upsert(
    connection: Connection, image_seq: int, tags: Mapping[str, int], *, source: str, model: str
) -> None:
    for name, confidence in tags.items():
        connection.execute("INSERT INTO tag (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
        connection.execute(
            "INSERT INTO image_tag (image_seq, tag_id, source, confidence, model)"
            " VALUES (?1, (SELECT id FROM tag WHERE name = ?2), ?3, ?4, ?5)"
            " ON CONFLICT DO UPDATE SET confidence = ?4, model = ?5",
            (image_seq, name, source, confidence, model),
        )
