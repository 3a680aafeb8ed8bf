"""Rows `match` and `match-original`: the best image for a text, against SQL.

The product is the whole of `Matcher.match` but for spaCy: the look whether tags have changed, the
text's phrases, the search, the explanation, and the id of the image. Its words are parted at white
space, because what SQL is given is the ids of tags, for which it need not even look. (Lemmas have a
row of their own.) Both must give the same image with the same score, or nothing is reported.

The mix of queries is described in `benchmarks.corpus`. In each run product and baseline answer the
whole mix, one after the other: in turns query by query, the product would be measured with caches
that SQL has just emptied.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from analysis.lemmas import Term
from benchmarks import corpus, libraries
from benchmarks.harness import Figure, Findings, Growth, Target, percentile
from dispatcher.matcher import Matcher
from storage.database import Database
from storage.images import Images
from storage.tags import Tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from benchmarks.harness import Setup

#: What an image is, and how well it fits: its number, and a sum of confidences in millionths.
_Answer: TypeAlias = "tuple[int, int]"
#: From tag ids to the image.
_Ask: TypeAlias = "Callable[[Sequence[int]], _Answer]"
#: Milliseconds of each query, perhaps asked several times.
_Times: TypeAlias = "list[list[float]]"

_INDEXED_SQL: Final = (
    "SELECT image_id, sum(confidence) AS score FROM posting WHERE tag_id IN ({})"
    " GROUP BY image_id ORDER BY score DESC, image_id LIMIT 1"
)
_ORIGINAL_SQL: Final = (
    "SELECT image_tag.image_id, SUM(image_tag.confidence) AS score FROM image_tag"
    " JOIN tag ON tag.id = image_tag.tag_id WHERE tag.name IN ({})"
    " GROUP BY image_tag.image_id ORDER BY score DESC, image_tag.image_id LIMIT 1"
)
#: Each length with each kind once: SQL takes seconds for some.
_MIX: Final = 40
#: The product answers the whole mix in less time than SQL one query: so many times in each run.
_PASSES: Final = 5
_SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
_TAGS: Final = (5, 10, 20, 40)


def measure(setup: Setup) -> Findings:
    """Compare with SQL that has the best index there is for it."""
    largest = setup.size(_SIZES[-1], 10_000)
    mix = corpus.mixed_queries(_MIX)
    p50_by_size: dict[int, list[float]] = {}
    for size in (each for each in _SIZES if each < largest):
        with _sides(setup, size) as (product, sql):
            _compare(product, sql, mix)  # warm
            p50_by_size[size] = _p50(_compare(product, sql, mix))
    some = setup.size(_SIZES[-2], 2_000)
    p50_by_tags: dict[int, list[float]] = {}
    for tags in _TAGS:
        with _sides(setup, some, tags) as (product, sql):
            _compare(product, sql, mix)  # warm
            p50_by_tags[tags] = _p50(_compare(product, sql, mix))
    with _sides(setup, largest) as (product, sql):
        _compare(product, sql, mix)  # warm
        compared = [
            _compare(product, sql, mix, baseline_first=run % 2 == 1) for run in range(setup.runs)
        ]
        alone = [_alone(product, setup.size(1_000, 100)) for _ in range(setup.runs)]
        by_words = _by_words(product, setup.size(40, 10))
    runs = [_p50(times) for times in compared]
    p50_by_size[largest] = [statistics.median(side) for side in zip(*runs, strict=True)]
    return Findings(
        figures=[
            Figure(
                title=f"match top-1, {largest:,} images, p50",
                baseline="indexed SQL GROUP BY (covering index)",
                unit="x",
                runs=[baseline / product for product, baseline in runs],
                target=Target(must=50, goal=500),
                details={
                    "picback p50 ms": statistics.median(product for product, _ in runs),
                    "SQL p50 ms": statistics.median(baseline for _, baseline in runs),
                    **_p50_by_kind(compared),
                },
            ),
            Figure(
                title=f"match top-1, {largest:,} images, p99",
                unit="ms",
                runs=[percentile(run, 99) for run in alone],
                target=Target(must=5, goal=2, at_most=True),
                details={"p50 ms": statistics.median(percentile(run, 50) for run in alone)},
            ),
        ],
        growths=[
            Growth(
                name="match by images",
                x="images of 20 tags",
                y="p50 of the mix (ms)",
                lines=_lines(p50_by_size),
            ),
            Growth(
                name="match by tags",
                x=f"tags of an image, {some:,} images",
                y="p50 of the mix (ms)",
                lines=_lines(p50_by_tags),
            ),
            Growth(
                name="match by words",
                x=f"words of the text, {largest:,} images",
                y="p50 (ms)",
                lines=by_words,
            ),
        ],
    )


def _lines(p50: Mapping[int, Sequence[float]]) -> dict[str, list[tuple[float, float]]]:
    """Return the two lines of a plot: what they depend on -> the product's p50 and SQL's."""
    return {
        label: [(x, both[side]) for x, both in p50.items()]
        for side, label in enumerate(("picback", "indexed SQL"))
    }


def measure_original(setup: Setup) -> Findings:
    """Compare with the SQL and the tables of the project that picback took its idea from."""
    images = setup.size(100_000, 2_000)
    mix = corpus.mixed_queries(_MIX)[:: 5 if setup.runs > 2 else 10]
    with (
        opened_matcher(libraries.picback(setup, images)) as matcher,
        original_sql(libraries.original(setup, images)) as sql,
    ):
        product = _asking(matcher)
        _compare(product, sql, mix[:2])  # warm
        runs = [
            _p50(_compare(product, sql, mix, baseline_first=run % 2 == 1))
            for run in range(setup.runs)
        ]
    return Findings(
        figures=[
            Figure(
                title=f"match top-1, {images:,} images, p50",
                baseline="the original project's join, unindexed",
                unit="x",
                runs=[baseline / product for product, baseline in runs],
                target=Target(must=1_000, goal=10_000),
                details={
                    "picback p50 ms": statistics.median(product for product, _ in runs),
                    "SQL p50 ms": statistics.median(baseline for _, baseline in runs),
                },
            )
        ]
    )


class Words:
    """A lemmatizer that takes each word between white space for its own lemma."""

    name = "words 1"

    def terms(self, text: str) -> list[Term]:
        """Return the words of *text*."""
        return [Term(word, (word,)) for word in text.split()]

    def keys_of_all(self, tags: Sequence[str]) -> list[tuple[str, ...]]:
        """Return each tag as its own key."""
        return [(tag,) for tag in tags]


@contextlib.contextmanager
def opened_matcher(folder: Path) -> Iterator[Matcher]:
    """Open a library of `libraries.picback` while the block runs, ready to match."""
    with contextlib.closing(Database.own(folder)) as database:
        matcher = Matcher(
            tags=Tags(database),
            images=Images(database),
            lemmatizer=Words(),  # type: ignore[arg-type] # it has all that a matcher asks for
        )
        matcher.refresh()
        yield matcher


@contextlib.contextmanager
def indexed_sql(path: Path) -> Iterator[_Ask]:
    """Open the database of `libraries.indexed` while the block runs."""
    with contextlib.closing(libraries.open_baseline(path)) as connection:
        yield lambda tags: _first(connection, _INDEXED_SQL, tags)


@contextlib.contextmanager
def original_sql(path: Path) -> Iterator[_Ask]:
    """Open the database of `libraries.original` while the block runs."""
    with contextlib.closing(libraries.open_baseline(path)) as connection:

        def ask(tags: Sequence[int]) -> _Answer:
            image, score = _first(connection, _ORIGINAL_SQL, [libraries.word(tag) for tag in tags])
            return image, round(1e6 * score)

        yield ask


@contextlib.contextmanager
def _sides(
    setup: Setup, images: int, tags_per_image: int = corpus.TAGS_PER_IMAGE
) -> Iterator[tuple[_Ask, _Ask]]:
    """Open product and baseline on libraries of so many *images*."""
    with (
        opened_matcher(libraries.picback(setup, images, tags_per_image)) as matcher,
        indexed_sql(libraries.indexed(setup, images, tags_per_image)) as sql,
    ):
        yield _asking(matcher), sql


def _asking(matcher: Matcher) -> _Ask:
    def ask(tags: Sequence[int]) -> _Answer:
        found = matcher.match(" ".join(map(libraries.word, tags)), limit=1).matches
        return (int(found[0].image_id[4:]), found[0].score) if found else (0, 0)

    return ask


def _first(connection: Any, sql: str, values: Sequence[object]) -> Any:
    filled = sql.format(",".join("?" * len(values)))
    rows = connection.execute(filled, list(values)).fetchall()
    return rows[0] if rows else (0, 0)


def _compare(
    product: _Ask, baseline: _Ask, mix: Sequence[Sequence[int]], *, baseline_first: bool = False
) -> list[_Times]:
    """Return what both took for each query: the product's times, then the baseline's.

    Raises:
        RuntimeError: They do not give the same answers.
    """
    sides = [(product, _PASSES), (baseline, 1)]
    asked = [_ask_all(*side, mix) for side in (sides[::-1] if baseline_first else sides)]
    found = asked[::-1] if baseline_first else asked
    for tags, (_, answer), (_, expected) in zip(mix, *found, strict=True):
        if answer != expected:
            msg = f"{tags} match {answer}, but by SQL {expected}"
            raise RuntimeError(msg)
    return [[times for times, _ in side] for side in found]


def _ask_all(
    ask: _Ask, passes: int, mix: Sequence[Sequence[int]]
) -> list[tuple[list[float], _Answer]]:
    """Ask the whole mix so many times; return milliseconds and the answer of each query."""
    times: list[list[float]] = [[] for _ in mix]
    answers: list[_Answer] = []
    for _ in range(passes):
        timed = [_timed(ask, tags) for tags in mix]
        answers = [answer for _, answer in timed]
        for taken, (seconds, _) in zip(times, timed, strict=True):
            taken.append(1e3 * seconds)
    return list(zip(times, answers, strict=True))


def _p50(compared: Sequence[_Times]) -> list[float]:
    """Return the product's median and the baseline's."""
    return [percentile([each for times in side for each in times], 50) for side in compared]


def _p50_by_kind(runs: Sequence[Sequence[_Times]]) -> dict[str, float]:
    """Return both medians for each kind of query in the mix, over all runs."""
    found = {}
    for place, kind in enumerate(corpus.KINDS):
        ten = slice(10 * place, 10 * place + 10)
        for side, label in enumerate(("picback", "SQL")):
            times = [each for run in runs for query in run[side][ten] for each in query]
            found[f"{label} p50 ms, {kind} words"] = percentile(times, 50)
    return found


def _timed(ask: _Ask, tags: Sequence[int]) -> tuple[float, _Answer]:
    begun = time.perf_counter()
    answer = ask(tags)
    return time.perf_counter() - begun, answer


def _alone(product: _Ask, count: int) -> list[float]:
    return [1e3 * _timed(product, tags)[0] for tags in corpus.mixed_queries(count, seed=6)]


def _by_words(product: _Ask, count: int) -> dict[str, list[tuple[float, float]]]:
    rng = np.random.default_rng(7)
    return {
        f"{kind} words": [
            (
                words,
                percentile(
                    [
                        1e3 * _timed(product, corpus.query(kind, words, rng))[0]
                        for _ in range(count)
                    ],
                    50,
                ),
            )
            for words in range(1, 11)
        ]
        for kind in ("common", "mixed", "rare")
    }
