"""The local tagger in its child process."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from analysis.pictures import PictureReader
from analysis.taggers import Interrupted, Refused, Tag, Tagged, TaggerLoadError, Unavailable
from analysis.taggers.local import LocalTagger
from analysis.taggers.local_process import LocalTaggerProcess
from tests.odd_images import PHOTOS
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPTED = "tests.analysis.processes.scripted_tagger"
SEEN = Tagged((Tag("cat", 900_000), Tag("dog", 500_000)), "m/1")
TIMEOUT = 60.0


@contextmanager
def tagging(module: str = SCRIPTED) -> Iterator[LocalTaggerProcess]:
    tagger = LocalTaggerProcess(module=module)
    tagger.start()
    try:
        yield tagger.loaded()
    finally:
        tagger.close()


def test_a_preview_is_tagged_as_in_this_process() -> None:
    names = ["otter.jpg", "panda.jpg", "cat.png"]
    previews = [
        PictureReader().decode((PHOTOS / name).read_bytes()).preview.content for name in names
    ]
    here = LocalTagger().tag(previews, timeout=TIMEOUT)
    with tagging("analysis.processes.tagger_main") as tagger:
        there = tagger.tag(previews, timeout=TIMEOUT)

    for one, other in zip(here, there, strict=True):
        assert isinstance(one, Tagged)
        assert isinstance(other, Tagged)
        assert one.model == other.model
        confidences = {tag.name: tag.confidence for tag in one.tags}
        assert pytest.approx(confidences, abs=100) == {
            tag.name: tag.confidence for tag in other.tags
        }


def test_the_models_tag_the_preview_of_a_photo_much_like_the_photo() -> None:
    tagger, reader = LocalTagger(), PictureReader()
    for path in sorted(PHOTOS.glob("*.jpg")):
        content = path.read_bytes()
        whole, preview = tagger.tag(
            [content, reader.decode(content).preview.content], timeout=TIMEOUT
        )
        assert isinstance(whole, Tagged)
        assert isinstance(preview, Tagged)
        found = {tag.name: tag.confidence for tag in preview.tags}
        # 0.06 is what docs/tagging.md states.
        assert all(
            abs(found.get(tag.name, 250_000) - tag.confidence) < 60_000 for tag in whole.tags
        )


def test_outcomes_come_in_order_each_for_its_preview() -> None:
    with tagging() as tagger:
        assert [SEEN, Refused("No."), SEEN] == tagger.tag([b"a", b"text", b"b"], timeout=TIMEOUT)


def test_a_preview_that_ends_the_process_is_interrupted_and_the_next_is_tagged() -> None:
    with tagging() as tagger:
        crashed, seen = tagger.tag([b"crash", b"a"], timeout=TIMEOUT)

    assert Interrupted("the tagger's process ended (signal SIGSEGV)") == crashed
    assert SEEN == seen


def test_a_process_that_is_killed_while_it_is_idle_is_replaced() -> None:
    with tagging() as tagger:
        for _ in range(5):
            (process_id,) = tagger.process_ids()
            os.kill(process_id, signal.SIGKILL)
            assert [SEEN] == tagger.tag([b"a"], timeout=TIMEOUT)


def test_a_preview_that_the_timeout_leaves_out_is_unavailable() -> None:
    with tagging() as tagger:
        late, next_one = tagger.tag([b"hang", b"a"], timeout=0.1)

    assert [Unavailable] * 2 == [type(late), type(next_one)]


def test_closing_ends_what_is_tagged_and_what_waits() -> None:
    with tagging() as tagger, ThreadPoolExecutor() as threads:
        found = [threads.submit(tagger.tag, [b"hang"], timeout=TIMEOUT) for _ in range(2)]
        wait_until(lambda: bool(tagger._pool._in_use) and bool(tagger._turns._waiting))
        tagger.close()
        outcomes = [future.result()[0] for future in found]

    assert [Unavailable] * 2 == [type(outcome) for outcome in outcomes]


def test_models_that_cannot_be_loaded_are_an_error_of_the_start() -> None:
    with (
        pytest.raises(TaggerLoadError, match=r"tags.tsv is not the file that MANIFEST lists"),
        tagging("tests.analysis.processes.failing_tagger"),
    ):
        pass
