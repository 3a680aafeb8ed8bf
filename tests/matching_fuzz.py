"""Random libraries and texts: what the matcher finds against looking at everything.

Run by tests/dispatcher/test_matcher_fuzz.py, and longer by ``make fuzz``. Libraries grow, are tagged
anew and lose images while the index merges what changed; confidences tie often. A failure
says the seed with which it comes again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dispatcher.index import TagIndex, search, writing
from storage.database import Database
from tests.dispatcher.matching import matcher_of
from tests.fakes import START
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dispatcher.matcher import Matcher
    from storage.database import Connection

#: Texts asked of each state of a library, and states of each library.
ASKED = 60
STATES = 8

TAGS = 14
#: The sets from which a library draws its confidences.
CONFIDENCES = (
    (1_000_000,),
    (999_999, 1_000_000),
    (1, 500_000, 1_000_000),
    tuple(range(800_000, 1_000_001, 50_000)),
    tuple(range(800_000, 1_000_000, 7)),
)


class Library:
    """Images in a database, and the same as a matrix: image number x tag, 0 where it has it not."""

    def __init__(self, store: Store, rng: np.random.Generator) -> None:
        self._store = store
        self._rng = rng
        self._confidences = CONFIDENCES[rng.integers(len(CONFIDENCES))]
        #: Share of the images that get each tag: from nearly all to nearly none.
        self._shares = rng.choice([0.9, 0.5, 0.3, 0.1, 0.02, 0.004], TAGS)
        #: Of deleted images the rows are empty. There is no image number 0.
        self.matrix: NDArray[np.int64] = np.zeros((1, TAGS), np.int64)

    def add(self, count: int) -> None:
        """Store images that were never there."""
        first = len(self.matrix)
        self.matrix = np.concatenate([self.matrix, self._drawn(count)])
        self._write(range(first, first + count), new=True)

    def tag_anew(self, count: int) -> None:
        """Give some images other tags."""
        seqs = self._some(count)
        self.matrix[seqs] = self._drawn(len(seqs))
        self._write(seqs.tolist())

    def delete(self, count: int) -> None:
        """Delete some images."""
        seqs = self._some(count).tolist()
        self.matrix[seqs] = 0

        def operation(connection: Connection) -> None:
            for seq in seqs:
                connection.execute("DELETE FROM image WHERE seq = ?", (seq,))
                connection.execute("INSERT INTO tagging (image_seq) VALUES (?)", (seq,))

        self._store.database.write(operation)

    def best(self, tags: Sequence[int], limit: int) -> list[tuple[int, int]]:
        """Look at everything: (image number, score), best first."""
        sums = self.matrix[:, sorted(set(tags))].sum(axis=1)
        ranked = sorted((-int(total), seq) for seq, total in enumerate(sums) if total)
        return [(seq, -total) for total, seq in ranked[:limit]]

    def _drawn(self, count: int) -> NDArray[np.int64]:
        has = self._rng.random((count, TAGS)) < self._shares
        return np.where(has, self._rng.choice(self._confidences, (count, TAGS)), 0)

    def _some(self, count: int) -> NDArray[np.int64]:
        living = np.array(
            [seq for (seq,) in self._store.database.read("SELECT seq FROM image")], np.int64
        )
        return self._rng.choice(living, min(count, len(living)), replace=False)

    def _write(self, seqs: Sequence[int] | range, *, new: bool = False) -> None:
        rows = [
            (seq, tag + 1, int(self.matrix[seq, tag]))
            for seq in seqs
            for tag in np.flatnonzero(self.matrix[seq]).tolist()
        ]

        def operation(connection: Connection) -> None:
            if new:
                connection.executemany(
                    "INSERT INTO image (seq, id, sha256, media_type, size_bytes, width, height,"
                    " state, created_at) VALUES (?1, ?1, ?1, 'image/png', 1, 1, 1, 'READY', ?2)",
                    [(seq, START) for seq in seqs],
                )
            connection.executemany(
                "DELETE FROM image_tag WHERE image_seq = ?", [(seq,) for seq in seqs]
            )
            connection.executemany(
                "INSERT INTO image_tag (image_seq, tag_id, source, confidence)"
                " VALUES (?, ?, 'MODEL', ?)",
                rows,
            )
            connection.executemany(
                "INSERT INTO tagging (image_seq) VALUES (?)", [(seq,) for seq in seqs]
            )

        self._store.database.write(operation)


def run(folder: Path, seed: int) -> int:
    """Try one library, and return how many texts were asked.

    Raises:
        AssertionError: The matcher and looking at everything differ.
    """
    rng = np.random.default_rng(seed)
    database = Database.own(folder)
    seeds, common = search._SEEDS, writing.COMMON
    # With few to begin with, most is left to be proved, as in a library of a million; and with
    # hardly any tag common, many lists are long that are walked.
    search._SEEDS = int(rng.choice([0, 0, 30, seeds]))  # type: ignore[misc] # put back below
    writing.COMMON = int(rng.choice([1, 4, common]))  # type: ignore[misc]
    try:
        store = Store(database)
        database.write(_name_tags)
        library = Library(store, rng)
        index = TagIndex(store.tags, merge_at=int(rng.choice([1, 20, 300, 100_000])))
        matcher = matcher_of(store, index=index)
        for _ in range(STATES):
            _change(library, rng)
            if rng.random() < 0.3:
                matcher.refresh()
                index.merge()
            if rng.random() < 0.1:  # as a restart does
                matcher.close()
                index = TagIndex(store.tags, merge_at=int(rng.choice([1, 20, 300])))
                matcher = matcher_of(store, index=index)
            for _ in range(ASKED):
                _ask(matcher, library, rng, seed)
        matcher.close()
    finally:
        search._SEEDS, writing.COMMON = seeds, common  # type: ignore[misc]
        database.close()
    return STATES * ASKED


def _change(library: Library, rng: np.random.Generator) -> None:
    library.add(int(rng.choice([1, 3, 40, 400])))
    if rng.random() < 0.5:
        library.tag_anew(int(rng.choice([1, 10, 200])))
    if rng.random() < 0.5:
        library.delete(int(rng.choice([1, 10, 200])))


def _ask(matcher: Matcher, library: Library, rng: np.random.Generator, seed: int) -> None:
    tags = rng.choice(TAGS, rng.integers(1, TAGS + 1)).tolist()
    limit = int(rng.choice([1, 1, 1, 2, 5, 20, 100]))
    text = " ".join(["and", *(f"t{tag}" for tag in tags)])
    found = [
        (int(match.image_id), match.score) for match in matcher.match(text, limit=limit).matches
    ]
    looked = library.best(tags, limit)
    assert looked == found, f"seed {seed}: {text!r}, limit {limit}: {found} instead of {looked}"


def _name_tags(connection: Connection) -> None:
    connection.executemany(
        "INSERT INTO tag (id, name) VALUES (?, ?)", [(tag + 1, f"t{tag}") for tag in range(TAGS)]
    )


def main() -> None:
    """Try libraries until enough texts were asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000_000)
    arguments = parser.parse_args()
    asked = libraries = 0
    while asked < arguments.texts:
        with tempfile.TemporaryDirectory() as folder:
            asked += run(Path(folder), arguments.seed + libraries)
        libraries += 1
    print(  # noqa: T201 - what it is for
        f"{asked} texts asked of {libraries} libraries (seed {arguments.seed}): the matcher found"
        " what looking at everything finds, every time"
    )


if __name__ == "__main__":
    main()
