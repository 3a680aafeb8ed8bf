"""The demo: that it holds, and that it would say so if it did not."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from examples.demo import __main__ as demo
from examples.demo.contact_sheet import Card, Tag, write_html
from examples.demo.contact_sheet_png import write_png
from examples.demo.credits import read_credits

ROOT = Path(__file__).parents[2]
TEXT = "a giant panda"
UNMATCHED = "quarterly revenue forecast"
PHOTO_BYTES = {name: (demo.PHOTOS / name).read_bytes() for name in ("panda.jpg", "dogs.jpg")}


def test_the_demo_keeps_its_promises_and_leaves_what_came_back(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )

    assert (0, "") == (result.returncode, result.stderr), result.stdout
    assert "12 of 12 queries answered" in result.stdout
    assert "all 12 answers are as promised" in result.stdout
    received = sorted(tmp_path.glob("[0-9][0-9]-*"))
    matched = [name for name in demo.QUERIES.values() if name]
    assert 11 == len(received) == len(matched)
    for path, name in zip(received, matched, strict=True):
        assert (demo.PHOTOS / name).read_bytes() == path.read_bytes()
    page = (tmp_path / "contact-sheet.html").read_text()
    assert len(matched) == page.count("<img ")
    assert not re.search(r"https?:|<script|<link|url\(", page)  # self-contained
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert "PNG" == sheet.format
        assert (2020, 1812) == sheet.size


def _callback(**changes: Any) -> dict[str, Any]:
    """Return what is promised for TEXT; *changes* replace its parts."""
    tag = {"name": "giant panda", "lemma": "giant panda", "confidence": 0.97}
    facts = {
        "lemmas": ["a", "giant", "panda"],
        "matched_tags": [tag],
        "score": 0.97,
        "image": {"media_type": "image/jpeg"},
    }
    result = base64.b64encode(PHOTO_BYTES["panda.jpg"]).decode()
    return {"type": "query.matched", "data": facts, "result": result} | changes


def _nothing(**changes: Any) -> dict[str, Any]:
    facts = {"lemmas": ["x"], "matched_tags": [], "score": 0, "image": None}
    return {"type": "query.unmatched", "data": facts, "result": None} | changes


def test_what_is_as_promised_has_no_problem() -> None:
    answers = [
        demo.check(TEXT, _callback(), PHOTO_BYTES, {}),
        demo.check(UNMATCHED, _nothing(), PHOTO_BYTES, {}),
    ]

    assert ["", ""] == [answer.problem for answer in answers]
    assert [True, False] == [answer.identical for answer in answers]


@pytest.mark.parametrize(
    ("text", "callback", "problem"),
    [
        (TEXT, None, "no callback came"),
        (TEXT, _nothing(), "query.unmatched instead of query.matched"),
        (UNMATCHED, _callback(), "query.matched instead of query.unmatched"),
        (
            TEXT,  # one byte is missing at the end
            _callback(result=base64.b64encode(PHOTO_BYTES["panda.jpg"][:-1]).decode()),
            "the picture is none of those uploaded",
        ),
        (
            TEXT,
            _callback(result=base64.b64encode(PHOTO_BYTES["dogs.jpg"]).decode()),
            "the picture is dogs.jpg, not panda.jpg",
        ),
    ],
)
def test_what_is_not_as_promised_makes_the_demo_fail(
    text: str, callback: dict[str, Any] | None, problem: str
) -> None:
    answer = demo.check(text, callback, PHOTO_BYTES, {})
    output = io.StringIO()
    status = demo.report(Console(file=output, width=200), [answer], Path("x"))

    assert problem == answer.problem
    assert 1 == status
    assert f"{text!r}: {problem}" in output.getvalue()
    assert "not as promised" in demo.summarise([answer])


def test_strangers_words_are_text_in_the_page_and_nothing_else(tmp_path: Path) -> None:
    hostile = "\"><script>alert('x')</script>$query"
    card = Card(
        query=hostile,
        lemmas=[hostile],
        tags=[Tag(name=hostile, lemma=hostile, confidence=0.5)],
        score=0.5,
        picture=PHOTO_BYTES["panda.jpg"],
        media_type=hostile,
        name=hostile,
        credit=hostile,
    )
    write_html([card], tmp_path / "page.html", summary=hostile)

    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert 'alt="The picture called back for: &quot;&gt;&lt;script&gt;' in page


def test_a_long_query_and_many_tags_fit_the_picture(tmp_path: Path) -> None:
    card = Card(
        query="word " * 200,
        lemmas=["word"] * 200,
        tags=[Tag(name="a long name of a tag", lemma="word", confidence=1)] * 30,
        score=30,
        picture=None,
        media_type="",
    )
    write_png([card] * 5, tmp_path / "sheet.png", summary="x")

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (2020, 1272) == sheet.size


def test_every_photo_has_a_line_of_credit() -> None:
    photos = {path.name for path in demo.PHOTOS.iterdir() if path.suffix != ".md"}
    credit_lines = read_credits(demo.PHOTOS / "CREDITS.md")

    assert photos == set(credit_lines)
    assert "Aitzol Berasategi, CC BY 4.0" == credit_lines["dogs.jpg"]
    assert "NASA, Public domain" == credit_lines["astronaut.jpg"]


def test_every_photo_that_is_asked_for_is_there() -> None:
    wanted = {name for name in demo.QUERIES.values() if name}

    assert wanted <= {path.name for path in demo.PHOTOS.iterdir()}
