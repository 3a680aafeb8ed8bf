"""Images, their bytes, and the duty to tag them.

An image that waits for the tagger is PENDING and either due or leased. A lease is held
by a thread of the one server process and ends with it: `void_leases` at start makes all
that was under way due again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from storage import requests, settings, tags
from storage.changes import Changes
from storage.errors import ImageNotFoundError
from storage.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.database import Connection, Database
    from storage.requests import Request
    from storage.tags import ImageTag

_COLUMNS: Final = (
    "seq, id, sha256, media_type, size_bytes, width, height, state,"
    " failure_reason, failure_message, created_at"
)
#: The setting that holds when only the operator could have made tagging work, the last time.
_BLOCKED_AT: Final = "tagging_blocked_at"
#: Images whose files are known without asking: half a kilobyte each.
_FILES: Final = 4096


class NewRendition(Protocol):
    """A smaller JPEG of an image."""

    @property
    def kind(self) -> str:
        """PREVIEW or THUMBNAIL."""

    @property
    def width(self) -> int:
        """In pixels."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def content(self) -> bytes:
        """The JPEG file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """What an upload knows."""

    content: bytes
    sha256: str
    media_type: str
    width: int
    height: int
    renditions: tuple[NewRendition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """What is known of a stored image's file; without its bytes."""

    seq: int
    id: str
    sha256: str
    media_type: str
    size_bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(ImageFile):
    """A stored image with its tags, best first; without its bytes."""

    state: str
    failure_reason: str | None
    failure_message: str | None
    created_at: int
    tags: tuple[ImageTag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggingLease:
    """The right of one thread to tag one image, proved by its number of attempt."""

    seq: int
    id: str
    #: From 1, counted when leased; never used twice.
    attempt: int
    #: When the image began to wait for tags.
    pending_since: int
    #: How many attempts before this one were interrupted: the process at work on them ended.
    interruptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TagsFound:
    """The tagger has spoken: tag name -> confidence (millionths), perhaps none."""

    tags: Mapping[str, int]
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggingFailed:
    """The tagger will never tag this image."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TagLater:
    """The tagger could not be asked; the image is due again at *due_at*.

    With *is_interrupted* the attempt counts among the image's interruptions.
    """

    due_at: int
    is_interrupted: bool = False


class Images:
    """The images of a database. Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Published after each change of an image, and after each attempt to tag it.
        self.changes = Changes()
        #: What never changes, and is asked for at each attempt to call back.
        self._file_of = lru_cache(maxsize=_FILES)(self._read_file_of)

    def add(
        self,
        new: NewImage,
        *,
        tags_of_caller: Mapping[str, int],
        request: Request | None,
        tag_it: bool,
        now: int,
    ) -> tuple[Image, bool]:
        """Store an image, or find the one with the same bytes or from the same request.

        Args:
            new: The image.
            tags_of_caller: Tag name -> confidence (millionths). They are added to an image
                that was there already, too.
            request: For idempotency, when the caller named the request.
            tag_it: Whether the image waits for a tagger (PENDING) or is READY as it is.
                An image that is FAILED waits again.
            now: The time, in milliseconds since the epoch.

        Returns:
            The image, and whether it is new.

        Raises:
            RequestIdReusedError: Nothing was changed.
            StorageFullError: There is too little free space; nothing was changed.
        """
        self._database.disk_space.require_for_new_data()
        new_image_id = new_id("img", now=now)

        def operation(connection: Connection) -> tuple[str, bool]:
            rows = connection.execute(
                "SELECT seq, id FROM image WHERE sha256 = ?", (new.sha256,)
            ).fetchall()
            id_ = rows[0][1] if rows else new_image_id
            known = requests.claim(connection, request, id_)
            if known is not None:
                return known, False
            if rows:
                seq = rows[0][0]
                _insert_renditions(connection, seq, new.renditions)
                if tag_it:
                    connection.execute(
                        "UPDATE image SET state = 'PENDING', failure_reason = NULL,"
                        " failure_message = NULL, pending_since = ?, due_at = ?, interruptions = 0"
                        " WHERE seq = ? AND state = 'FAILED'",
                        (now, now, seq),
                    )
            else:
                seq = _insert(connection, id_, new, tag_it=tag_it, now=now)
            if tags_of_caller:
                tags.set_by_caller(connection, seq, tags_of_caller)
            return id_, not rows

        size_bytes = len(new.content) + sum(len(each.content) for each in new.renditions)
        id_, created = self._database.write(operation, size_bytes=size_bytes)
        self.changes.publish(id_)
        return self.get(id_), created

    def get(self, image_id: str) -> Image:
        """Return one image.

        Raises:
            ImageNotFoundError: There is none with this id.
        """
        found = self._images(f"SELECT {_COLUMNS} FROM image WHERE id = ?", (image_id,))
        if not found:
            msg = "there is no image with this id"
            raise ImageNotFoundError(msg)
        return found[0]

    def file_of(self, image_id: str) -> ImageFile:
        """Return what is known of an image's file, which may have been deleted meanwhile.

        Raises:
            ImageNotFoundError: There is none with this id.
        """
        return self._file_of(image_id)

    def _read_file_of(self, image_id: str) -> ImageFile:
        rows = self._database.read(
            "SELECT seq, id, sha256, media_type, size_bytes, width, height FROM image WHERE id = ?",
            (image_id,),
        )
        if not rows:
            msg = "there is no image with this id"
            raise ImageNotFoundError(msg)
        seq, id_, sha256, media_type, size_bytes, width, height = rows[0]
        return ImageFile(
            seq=seq,
            id=id_,
            sha256=sha256,
            media_type=media_type,
            size_bytes=size_bytes,
            width=width,
            height=height,
        )

    def ids_of(self, seqs: Sequence[int]) -> dict[int, str]:
        """Return the ids of images by their numbers; those deleted are left out."""
        return dict(
            self._database.read(
                "SELECT seq, id FROM image WHERE seq IN (SELECT value FROM json_each(?))",
                (json.dumps(list(seqs)),),
            )
        )

    def content(self, seq: int) -> bytes:
        """Return an image's bytes, as they were uploaded.

        Raises:
            ImageNotFoundError: It has been deleted.
        """
        rows = self._database.read("SELECT content FROM image_content WHERE image_seq = ?", (seq,))
        if not rows:
            msg = "the image has been deleted"
            raise ImageNotFoundError(msg)
        return bytes(rows[0][0])

    def rendition(self, seq: int, kind: str) -> bytes | None:
        """Return the JPEG of a rendition; None when it has not been made."""
        rows = self._database.read(
            "SELECT content FROM image_rendition WHERE image_seq = ? AND kind = ?", (seq, kind)
        )
        return bytes(rows[0][0]) if rows else None

    def add_renditions(self, seq: int, renditions: Sequence[NewRendition]) -> None:
        """Store renditions of an image that has none. One that was deleted stays so."""

        def operation(connection: Connection) -> None:
            if connection.execute("SELECT 1 FROM image WHERE seq = ?", (seq,)).fetchall():
                _insert_renditions(connection, seq, renditions)

        self._database.write(operation, size_bytes=sum(len(each.content) for each in renditions))

    def page(self, *, before: int | None, size: int) -> list[Image]:
        """Return up to *size* images, newest first, stored before number *before*."""
        where, values = ("", ()) if before is None else ("WHERE seq < ?", (before,))
        return self._images(
            f"SELECT {_COLUMNS} FROM image {where} ORDER BY seq DESC LIMIT ?", (*values, size)
        )

    def update_tags(
        self, image_id: str, *, set_tags: Mapping[str, int], remove: Sequence[str]
    ) -> Image:
        """Set and remove tags by hand, over whatever a model says now or later.

        Raises:
            ImageNotFoundError: Nothing was changed.
        """

        def operation(connection: Connection) -> None:
            seq = _seq_of(connection, image_id)
            # Confidence 0 takes a tag away.
            tags.set_by_caller(connection, seq, {**set_tags, **dict.fromkeys(remove, 0)})

        self._database.write(operation)
        self.changes.publish(image_id)
        return self.get(image_id)

    def delete(self, image_id: str) -> None:
        """Delete an image, its bytes and its tags.

        Raises:
            ImageNotFoundError: There is none with this id.
        """

        def operation(connection: Connection) -> None:
            seq = _seq_of(connection, image_id)
            connection.execute("DELETE FROM image WHERE seq = ?", (seq,))
            requests.forget(connection, image_id)
            tags.announce(connection, seq)

        self._database.write(operation, uses_reserve=True)
        self.changes.publish(image_id)

    def lease_for_tagging(self, *, limit: int, now: int) -> list[TaggingLease]:
        """Lease up to *limit* images that are due for tagging, oldest first."""

        def operation(connection: Connection) -> list[TaggingLease]:
            rows = connection.execute(
                "SELECT seq FROM image WHERE due_at <= ? ORDER BY due_at, seq LIMIT ?",
                (now, limit),
            ).fetchall()
            return [
                TaggingLease(
                    seq=seq,
                    id=id_,
                    attempt=attempt,
                    pending_since=pending_since,
                    interruptions=interruptions,
                )
                for (due,) in rows
                for seq, id_, attempt, pending_since, interruptions in connection.execute(
                    "UPDATE image SET attempt = attempt + 1, due_at = NULL, leased_at = ?"
                    " WHERE seq = ? RETURNING seq, id, attempt, pending_since, interruptions",
                    (now, due),
                ).fetchall()
            ]

        return self._database.write(operation)

    def next_tagging_due_at(self) -> int | None:
        """Return when the next image is due for tagging; None when none waits."""
        rows = self._database.read("SELECT min(due_at) FROM image WHERE due_at IS NOT NULL")
        due_at = rows[0][0]
        return None if due_at is None else int(due_at)

    def tagging_blocked_at(self) -> int:
        """Return when `note_tagging_blocked` was called last (milliseconds); 0 for never."""
        return int(settings.get(self._database, _BLOCKED_AT) or 0)

    def note_tagging_blocked(self, *, now: int) -> None:
        """Store that the operator's action is what tagging waited for at *now* (milliseconds)."""
        settings.put(self._database, _BLOCKED_AT, b"%d" % now)

    def settle_tagging(
        self, outcomes: Sequence[tuple[TaggingLease, TagsFound | TaggingFailed | TagLater]]
    ) -> None:
        """End leases by recording what came of them. A lease that was lost changes nothing."""

        def operation(connection: Connection) -> None:
            for lease, outcome in outcomes:
                _settle(connection, lease, outcome)

        self._database.write(operation, uses_reserve=True)
        for lease, _ in outcomes:
            self.changes.publish(lease.id)

    def void_leases(self, *, max_interruptions: int, now: int) -> list[str]:
        """Make every leased image due. Only right when no thread holds a lease: at start.

        The process that held the leases ended, perhaps for one of these images. So each counts
        an interruption, waits longer each time (0, 1, 3, 7 s, ...), and is FAILED with
        IMAGE_UNPROCESSABLE after *max_interruptions*.

        Returns:
            The ids of the images that are FAILED now.
        """

        def operation(connection: Connection) -> list[str]:
            connection.execute(
                "UPDATE image SET interruptions = interruptions + 1, leased_at = NULL,"
                " due_at = ? + 1000 * ((1 << min(interruptions, 16)) - 1)"
                " WHERE leased_at IS NOT NULL",
                (now,),
            )
            failed = connection.execute(
                "UPDATE image SET due_at = NULL, state = 'FAILED',"
                " failure_reason = 'IMAGE_UNPROCESSABLE', failure_message = ?"
                " WHERE due_at IS NOT NULL AND interruptions >= ? RETURNING id",
                ("the server ended each time that it tagged this image", max_interruptions),
            ).fetchall()
            return [id_ for (id_,) in failed]

        return self._database.write(operation, uses_reserve=True)

    def _images(self, sql: str, parameters: tuple[object, ...]) -> list[Image]:
        rows = self._database.read(sql, parameters)
        tags_of = tags.read_of(self._database, [row[0] for row in rows])
        names = [name.strip() for name in _COLUMNS.split(",")]
        return [
            Image(**dict(zip(names, row, strict=True)), tags=tags_of.get(row[0], ()))
            for row in rows
        ]


def _insert(connection: Connection, id_: str, new: NewImage, *, tag_it: bool, now: int) -> int:
    seq = connection.execute(
        "INSERT INTO image (id, sha256, media_type, size_bytes, width, height, state, created_at,"
        " pending_since, due_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            id_,
            new.sha256,
            new.media_type,
            len(new.content),
            new.width,
            new.height,
            "PENDING" if tag_it else "READY",
            now,
            now if tag_it else None,
            now if tag_it else None,
        ),
    ).lastrowid
    connection.execute(
        "INSERT INTO image_content (image_seq, content) VALUES (?, ?)", (seq, new.content)
    )
    _insert_renditions(connection, seq, new.renditions)
    return int(seq)


def _insert_renditions(
    connection: Connection, seq: int, renditions: Sequence[NewRendition]
) -> None:
    # What is there stays: an image of an earlier version has none.
    for each in renditions:
        connection.execute(
            "INSERT OR IGNORE INTO image_rendition (image_seq, kind, width, height, content)"
            " VALUES (?, ?, ?, ?, ?)",
            (seq, each.kind, each.width, each.height, each.content),
        )


def _seq_of(connection: Connection, image_id: str) -> int:
    rows = connection.execute("SELECT seq FROM image WHERE id = ?", (image_id,)).fetchall()
    if not rows:
        msg = "there is no image with this id"
        raise ImageNotFoundError(msg)
    return int(rows[0][0])


def _settle(
    connection: Connection,
    lease: TaggingLease,
    outcome: TagsFound | TaggingFailed | TagLater,
) -> None:
    changes, values = _changes_of(outcome)
    held = connection.execute(
        f"UPDATE image SET leased_at = NULL, {changes}"
        " WHERE seq = ? AND attempt = ? AND leased_at IS NOT NULL",
        (*values, lease.seq, lease.attempt),
    ).rowcount
    if held and isinstance(outcome, TagsFound):
        tags.set_by_model(connection, lease.seq, outcome.tags, model=outcome.model)


def _changes_of(outcome: TagsFound | TaggingFailed | TagLater) -> tuple[str, tuple[object, ...]]:
    match outcome:
        case TagsFound():
            return "state = 'READY'", ()
        case TaggingFailed():
            return (
                "state = 'FAILED', failure_reason = ?, failure_message = ?",
                (outcome.reason, outcome.message),
            )
        case TagLater():
            return (
                "due_at = ?, interruptions = interruptions + ?",
                (outcome.due_at, int(outcome.is_interrupted)),
            )
