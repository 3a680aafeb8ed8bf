"""Row `lemmas`: texts lemmatised while 64 queries wait, against the whole pipeline one by one.

The baseline is what one writes first: ``spacy.load`` with nothing left out, called for one text
after the other. Product and baseline get the same texts, real sentences that differ from run to
run by a number, so that nothing that was kept from another run helps.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import spacy

from analysis.lemmas import DEFAULT_PIPELINE, Lemmatizer
from benchmarks.harness import Figure, Findings, Target, median_of, paired, ratios

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.harness import Setup

_SENTENCES: Final = Path(__file__).parents[1] / "tests" / "analysis" / "sentences.txt"
WAITING: Final = 64


def measure(setup: Setup) -> Findings:
    """Compare texts per second."""
    sentences = _SENTENCES.read_text("utf-8").splitlines()
    batches = setup.size(4, 1)
    lemmatizer = Lemmatizer()
    whole = spacy.load(DEFAULT_PIPELINE)
    with ThreadPoolExecutor(WAITING) as pool:
        runs: list[dict[str, float]] = []
        for run in range(setup.runs + 1):
            texts = _texts(sentences, run, WAITING * batches)

            def one_by_one(texts: Sequence[str] = texts) -> None:
                for text in texts:
                    whole(text)

            def waiting(texts: Sequence[str] = texts) -> None:
                _exhaust(pool.map(lemmatizer.terms, texts))

            def in_batches(texts: Sequence[str] = texts) -> None:
                for start in range(0, len(texts), WAITING):
                    lemmatizer.terms_of_all(texts[start : start + WAITING])

            contestants: dict[str, Callable[[], float]] = {
                "baseline": lambda: len(texts) / _seconds(one_by_one),  # noqa: B023 - called at once
                "waiting": lambda: len(texts) / _seconds(waiting),  # noqa: B023
                "batch": lambda: len(texts) / _seconds(in_batches),  # noqa: B023
            }
            if run % 2:
                contestants = dict(reversed(contestants.items()))
            runs += paired(1, contestants)
    runs = runs[1:]  # the first one warmed
    baseline = "the full pipeline, one text at a time"
    absolute = {"texts/s of the full pipeline": median_of(runs, "baseline")}
    return Findings(
        figures=[
            Figure(
                title="lemmas, 64 queries waiting",
                baseline=baseline,
                unit="x",
                runs=ratios(runs, "waiting", "baseline"),
                target=Target(must=4, goal=10),
                details={"texts/s": median_of(runs, "waiting"), **absolute},
            ),
            Figure(
                title="lemmas, a batch of 64 by one thread",
                baseline=baseline,
                unit="x",
                runs=ratios(runs, "batch", "baseline"),
                details={"texts/s": median_of(runs, "batch"), **absolute},
            ),
        ]
    )


def _texts(sentences: Sequence[str], run: int, count: int) -> list[str]:
    endless = itertools.cycle(sentences)
    return [f"{next(endless)} Number {run * count + number}." for number in range(count)]


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _exhaust(results: Iterable[object]) -> None:
    for _ in results:
        pass
