"""The contact sheet as one picture: the page's cards in a fixed grid. Sizes are in pixels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from examples.demo.contact_sheet import Card

    _Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_COLUMNS: Final = 4
_CARD: Final = (460, 512)
_PICTURE: Final = (460, 330)
_GAP: Final = 28
_MARGIN: Final = 48
_HEADER: Final = 124
_PADDING: Final = 20
_CHIP_HEIGHT: Final = 32
_GROUND: Final = "#f6f5f2"
_WHITE: Final = "#ffffff"
_INK: Final = "#1d1f23"
_SOFT: Final = "#6b7078"
_ACCENT: Final = "#0b6e5f"
_CHIP: Final = "#e3f1ee"
_HOLLOW: Final = "#eceae5"


def write_png(cards: Sequence[Card], path: Path, *, summary: str) -> None:
    """Write the sheet."""
    rows = -(-len(cards) // _COLUMNS)
    width = 2 * _MARGIN + _COLUMNS * _CARD[0] + (_COLUMNS - 1) * _GAP
    height = 2 * _MARGIN + _HEADER + rows * _CARD[1] + (rows - 1) * _GAP
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), "Send words, get the picture called back", _INK, _font(44))
    draw.text((_MARGIN, _MARGIN + 62), summary, _SOFT, _font(20))
    for place, card in enumerate(cards):
        row, column = divmod(place, _COLUMNS)
        left = _MARGIN + column * (_CARD[0] + _GAP)
        top = _MARGIN + _HEADER + row * (_CARD[1] + _GAP)
        sheet.paste(_card_image(card), (left, top))
    sheet.save(path, optimize=True)


def _card_image(card: Card) -> Image.Image:
    image = Image.new("RGB", _CARD, _WHITE)
    image.paste(_picture(card), (0, 0))
    draw = ImageDraw.Draw(image)
    top = _PICTURE[1] + 18
    query = f"\u201c{card.query}\u201d"
    draw.text((_PADDING, top), query, _INK, _fitting(query, _CARD[0] - 2 * _PADDING))
    draw.text((_PADDING, top + 38), " ".join(card.lemmas), _SOFT, _font(18))
    _draw_chips(draw, card, top=top + 74)
    corner = (_CARD[0] - _PADDING, _CARD[1] - _PADDING)
    score, colour = (f"{card.score:.2f}", _ACCENT) if card.tags else ("0", _SOFT)
    draw.text(corner, score, colour, _font(28), anchor="rs")
    return image


def _picture(card: Card) -> Image.Image:
    """Return the upper part of a card, with the photographer's name on a dark foot."""
    middle = (_PICTURE[0] / 2, _PICTURE[1] / 2)
    if card.picture is None:
        nothing = Image.new("RGB", _PICTURE, _HOLLOW)
        ImageDraw.Draw(nothing).text(middle, "nothing matches", _SOFT, _font(24), anchor="mm")
        return nothing
    with Image.open(io.BytesIO(card.picture)) as picture:
        fitted = ImageOps.fit(picture.convert("RGB"), _PICTURE, centering=(0.5, 0.35))
    foot = Image.linear_gradient("L").resize((_PICTURE[0], 70)).point(lambda level: level * 0.7)
    fitted.paste("#000000", (0, _PICTURE[1] - 70), foot)
    corner = (_PICTURE[0] - 12, _PICTURE[1] - 10)
    ImageDraw.Draw(fitted).text(corner, card.credit, _WHITE, _font(15), anchor="rs")
    return fitted


def _draw_chips(draw: ImageDraw.ImageDraw, card: Card, *, top: float) -> None:
    """Draw a rounded box for each tag, in as many lines as it takes."""
    left: float = _PADDING
    font = _font(17)
    for tag in card.tags:
        label = f"{tag.name} {tag.confidence:.2f}"
        width = draw.textlength(label, font) + 24
        if left + width > _CARD[0] - 90:  # the score's corner stays free
            left, top = _PADDING, top + _CHIP_HEIGHT + 6
        box = (left, top, left + width, top + _CHIP_HEIGHT)
        draw.rounded_rectangle(box, _CHIP_HEIGHT / 2, _CHIP)
        draw.text((left + 12, top + _CHIP_HEIGHT / 2), label, _INK, font, anchor="lm")
        left += width + 8


def _fitting(text: str, width: int) -> _Font:
    """Return the largest font, of 26 pixels at most, in which *text* is no wider than *width*."""
    size = 26
    while size > 12 and _font(size).getlength(text) > width:
        size -= 1
    return _font(size)


def _font(size: float) -> _Font:
    """Return the font that comes with Pillow."""
    return ImageFont.load_default(size)
