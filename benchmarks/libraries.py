"""Databases full of a made-up library: picback's own, and those of the two baselines.

They are written past every safeguard, because that is 20 times as fast, and kept for the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import corpus
from storage import driver, schema
from storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness import Setup

#: The covering index is the table itself: all that the query needs, tag by tag.
_INDEXED: Final = """
    CREATE TABLE posting (
        tag_id INTEGER, image_id INTEGER, confidence INTEGER,
        PRIMARY KEY (tag_id, image_id, confidence)
    ) WITHOUT ROWID
"""
#: As the original project had them.
_ORIGINAL: Final = (
    "CREATE TABLE image (id INTEGER PRIMARY KEY)",
    "CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT)",
    """CREATE TABLE image_tag (
        image_id INTEGER, tag_id INTEGER, confidence REAL, PRIMARY KEY (image_id, tag_id)
    )""",
)


def word(tag_id: int) -> str:
    """Return a tag's name: one word."""
    return f"w{tag_id}"


def image_id(number: int) -> str:
    """Return an image's id in picback's database."""
    return f"img_{number:026}"


def picback(setup: Setup, images: int, tags_per_image: int = corpus.TAGS_PER_IMAGE) -> Path:
    """Return a data folder of picback with a library of so many *images*, without their bytes."""

    def fill(folder: Path) -> None:
        Database.own(folder).close()  # makes the tables
        with _bulk(folder / "picback.db") as connection:
            connection.executemany(
                "INSERT INTO tag (id, name) VALUES (?, ?)",
                ((tag, word(tag)) for tag in corpus.TAG_IDS),
            )
            connection.executemany(
                "INSERT INTO image (seq, id, sha256, media_type, size_bytes, width, height, state,"
                " created_at) VALUES (?, ?, ?, 'image/jpeg', 1, 1, 1, 'READY', 1)",
                ((seq, image_id(seq), f"{seq:064x}") for seq in range(1, images + 1)),
            )
            for part in corpus.postings(images, tags_per_image=tags_per_image):
                connection.executemany(
                    "INSERT INTO image_tag (image_seq, tag_id, source, confidence)"
                    " VALUES (?, ?, 'MODEL', ?)",
                    zip(
                        part.images.tolist(),
                        part.tags.tolist(),
                        part.confidences.tolist(),
                        strict=True,
                    ),
                )

    return _kept(setup, f"picback-{images}x{tags_per_image}", fill)


def indexed(setup: Setup, images: int, tags_per_image: int = corpus.TAGS_PER_IMAGE) -> Path:
    """Return a database for the indexed SQL: `_INDEXED`."""

    def fill(folder: Path) -> None:
        rows = corpus.sorted_by_tag(corpus.postings(images, tags_per_image=tags_per_image))
        with _bulk(folder / "indexed.db") as connection:
            connection.execute(_INDEXED)
            connection.executemany("INSERT INTO posting VALUES (?, ?, ?)", rows)

    return _kept(setup, f"indexed-{images}x{tags_per_image}", fill) / "indexed.db"


def original(setup: Setup, images: int) -> Path:
    """Return a database as the original project's: `_ORIGINAL`."""

    def fill(folder: Path) -> None:
        with _bulk(folder / "original.db") as connection:
            for table in _ORIGINAL:
                connection.execute(table)
            connection.executemany(
                "INSERT INTO image VALUES (?)", ((number,) for number in range(1, images + 1))
            )
            connection.executemany(
                "INSERT INTO tag VALUES (?, ?)", ((tag, word(tag)) for tag in corpus.TAG_IDS)
            )
            for part in corpus.postings(images):
                connection.executemany(
                    "INSERT INTO image_tag VALUES (?, ?, ?)",
                    zip(
                        part.images.tolist(),
                        part.tags.tolist(),
                        (part.confidences / 1e6).tolist(),
                        strict=True,
                    ),
                )

    return _kept(setup, f"original-{images}", fill) / "original.db"


def open_baseline(path: Path) -> Any:
    """Open a baseline's database for reading, with all the memory that it could wish for."""
    connection = driver.connect(path, read_only=True)
    for pragma in ("mmap_size=2147483648", "cache_size=-262144", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


@contextlib.contextmanager
def _bulk(path: Path) -> Iterator[Any]:
    """Open a database for writing much at once, in one transaction."""
    with contextlib.closing(driver.connect(path)) as connection:
        for pragma in (
            "page_size=16384",
            "locking_mode=EXCLUSIVE",
            "journal_mode=OFF",
            "synchronous=OFF",
            "ignore_check_constraints=ON",
            "cache_size=-262144",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")


def _kept(setup: Setup, name: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder that *fill* has filled, now or in an earlier run."""
    folder = setup.cache / f"{name}-{_revision()}"
    if not folder.exists():
        for stale in setup.cache.glob(f"{name}-*"):
            shutil.rmtree(stale)
        unfinished = setup.cache / f"unfinished-{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.rename(folder)
    return folder


def _revision() -> str:
    """Return what changes whenever the databases would come out differently."""
    sources = (__file__, corpus.__file__, schema.__file__)
    text = b"".join(Path(source).read_bytes() for source in sources)
    return hashlib.sha256(text).hexdigest()[:8]
