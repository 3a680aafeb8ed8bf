"""The demo's result to look at: an HTML page that needs nothing beside it.

All text passes `html.escape` on its way into the page: queries and tags are strangers' words.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE: Final = Path(__file__).with_name("contact_sheet.html")
_SUFFIXES: Final = {"image/jpeg": ".jpg", "image/png": ".png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag that matched, the lemma that it met, and its confidence from 0 to 1."""

    name: str
    lemma: str
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One query and what came back; *picture* is None when nothing matched."""

    query: str
    lemmas: Sequence[str]
    tags: Sequence[Tag]
    score: float
    picture: bytes | None
    media_type: str
    name: str = ""
    credit: str = ""

    @property
    def suffix(self) -> str:
        """The picture's file name ending."""
        return _SUFFIXES.get(self.media_type, ".bin")


def write_html(cards: Sequence[Card], path: Path, *, summary: str) -> None:
    """Write the page: self-contained, for wide and narrow screens, light and dark."""
    template = Template(_PAGE.read_text(encoding="utf-8"))
    page = template.substitute(
        summary=escape(summary), cards="\n".join(_card_html(card) for card in cards)
    )
    path.write_text(page, encoding="utf-8")


def _card_html(card: Card) -> str:
    met = {word for tag in card.tags for word in tag.lemma.split()}
    lemmas = " ".join(
        f"<b>{escape(lemma)}</b>" if lemma in met else f"<span>{escape(lemma)}</span>"
        for lemma in card.lemmas
    )
    query = escape(card.query)
    if card.picture is None:
        return _UNMATCHED.substitute(query=query, lemmas=lemmas)
    chips = "".join(
        f'<li style="--confidence: {tag.confidence:.4f}">{escape(tag.name)}'
        f" <small>{tag.confidence:.2f}</small></li>"
        for tag in card.tags
    )
    data = base64.b64encode(card.picture).decode()
    return _MATCHED.substitute(
        query=query,
        lemmas=lemmas,
        chips=chips,
        score=f"{card.score:.2f}",
        source=f"data:{escape(card.media_type)};base64,{data}",
        name=escape(card.name),
        credit=escape(card.credit),
    )


_MATCHED: Final = Template("""\
<article>
  <figure>
    <img src="$source" alt="The picture called back for: $query" loading="lazy">
    <figcaption>$credit</figcaption>
  </figure>
  <div class="text">
    <h2>$query</h2>
    <p class="lemmas">$lemmas</p>
    <ul class="chips">$chips</ul>
    <footer><span>$name</span><strong title="sum of confidences">$score</strong></footer>
  </div>
</article>""")

_UNMATCHED: Final = Template("""\
<article class="unmatched">
  <figure><div class="nothing">nothing matches</div></figure>
  <div class="text">
    <h2>$query</h2>
    <p class="lemmas">$lemmas</p>
    <footer><span>query.unmatched</span><strong>0</strong></footer>
  </div>
</article>""")
