"""What a tagger gets to see of a picture: upright, opaque, 8-bit RGB."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, ImageChops

from analysis.pictures import PictureReader

RED, GREEN, BLUE, BLACK, WHITE = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (0, 0, 0),
    (255, 255, 255),
)


def encoded(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, pillow_format, **options)
    return file.getvalue()


def rgb(content: bytes) -> Image.Image:
    return PictureReader().preview(content)


def corners(image: Image.Image) -> list[Any]:
    """Read the four corners, clockwise from the top left."""
    right, bottom = image.width - 1, image.height - 1
    return [image.getpixel(at) for at in ((0, 0), (right, 0), (right, bottom), (0, bottom))]


def flag() -> Image.Image:
    """Make 3 x 2 pixels whose corners are red, green, blue and black, clockwise."""
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), RED)
    image.putpixel((2, 0), GREEN)
    image.putpixel((2, 1), BLUE)
    return image


@pytest.mark.parametrize("pillow_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, BLACK]),
        (2, [GREEN, RED, BLACK, BLUE]),
        (3, [BLUE, BLACK, RED, GREEN]),
        (4, [BLACK, BLUE, GREEN, RED]),
        (5, [RED, BLACK, BLUE, GREEN]),
        (6, [BLACK, RED, GREEN, BLUE]),  # a phone held upright
        (7, [BLUE, GREEN, RED, BLACK]),
        (8, [GREEN, BLUE, BLACK, RED]),
        (9, [RED, GREEN, BLUE, BLACK]),  # no orientation
    ],
)
def test_a_picture_is_turned_upright(
    orientation: int, expected: list[Any], pillow_format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if pillow_format == "WEBP" else {}

    image = rgb(encoded(flag(), pillow_format, exif=exif, **options))

    assert expected == corners(image)


def test_unreadable_exif_is_no_reason_to_refuse() -> None:
    content = encoded(flag(), "PNG", exif=b"Exif\0\0no TIFF at all")

    assert [RED, GREEN, BLUE, BLACK] == corners(rgb(content))


def test_what_is_transparent_is_seen_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.putpixel((2, 0), (*BLACK, 128))

    seen = rgb(encoded(image, "PNG"))

    assert [WHITE, RED, (127, 127, 127)] == [seen.getpixel((x, 0)) for x in range(3)]


def test_a_transparent_palette_colour_is_seen_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)

    seen = rgb(encoded(image, "PNG", transparency=bytes([0, 255])))

    assert [WHITE, BLUE] == [seen.getpixel((0, 0)), seen.getpixel((1, 0))]


@pytest.mark.parametrize(
    ("mode", "pillow_format", "values"),
    [
        ("I;16", "PNG", [1000, 33_500, 66_000 - 1000]),
        ("I", "TIFF", [-100_000, 0, 100_000]),
        ("F", "TIFF", [0.25, 0.5, 0.75]),
    ],
)
def test_deep_grey_is_stretched_and_not_clipped(
    mode: str, pillow_format: str, values: list[float]
) -> None:
    image = Image.new(mode, (3, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)

    seen = rgb(encoded(image, pillow_format))

    levels = [seen.getpixel((x, 0)) for x in range(3)]
    assert [BLACK, WHITE] == [levels[0], levels[2]]
    assert levels[1] in {(127,) * 3, (128,) * 3, (129,) * 3}


def test_deep_grey_of_a_single_value_is_black() -> None:
    assert BLACK == rgb(encoded(Image.new("F", (1, 1), 0.5), "TIFF")).getpixel((0, 0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_a_png_comes_as_rgb(mode: str) -> None:
    assert "RGB" == rgb(encoded(Image.new(mode, (2, 2)), "PNG")).mode


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_print_colours_come_as_rgb(mode: str) -> None:
    assert "RGB" == rgb(encoded(Image.new(mode, (2, 2)), "TIFF")).mode


@pytest.mark.parametrize("pillow_format", ["GIF", "PNG"])
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1280, 640), (1280, 640)),
        ((30, 20), (30, 20)),  # never enlarged
        ((640, 1281), (640, 1280)),
        ((3900, 1500), (1280, 492)),
        ((7680, 12), (1280, 2)),
        ((5000, 1), (1280, 1)),
    ],
)
def test_a_preview_is_reduced_to_its_longest_side(
    size: tuple[int, int], expected: tuple[int, int], pillow_format: str
) -> None:
    assert expected == rgb(encoded(Image.new("RGB", size), pillow_format)).size


@pytest.mark.parametrize(
    ("size", "expected"), [((2000, 1000), (1000, 500)), ((8000, 6000), (1000, 750))]
)
def test_a_jpeg_is_reduced_while_it_is_decoded_if_enough_pixels_are_left(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert expected == rgb(encoded(Image.new("RGB", size), "JPEG")).size


def large_flag(mode: str) -> Image.Image:
    """Make quarters of red, green, black and blue, more pixels than one strip has."""
    return flag().resize((4, 2), Image.Resampling.NEAREST).resize((3000, 1500), 0).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_a_large_picture_is_reduced_in_strips_without_a_seam(mode: str) -> None:
    image = large_flag(mode)

    seen = rgb(encoded(image, "TIFF"))

    assert (1280, 640) == seen.size
    whole = image.convert("RGB").resize((1280, 640), Image.Resampling.BOX)
    difference = ImageChops.difference(seen, whole).crop((0, 0, 1280, 310))
    assert [RED, GREEN, BLUE, BLACK] == corners(seen)
    assert max(difference.crop((0, 0, 300, 310)).tobytes()) <= 1


def test_deep_grey_is_stretched_between_the_extremes_of_the_whole_picture() -> None:
    image = Image.new("I;16", (1500, 1400), 30_000)  # more than one strip
    image.putpixel((0, 0), 10_000)
    image.putpixel((1499, 1399), 50_000)

    seen = rgb(encoded(image, "PNG"))

    assert {(127,) * 3, (128,) * 3} >= {seen.getpixel((640, y)) for y in (100, 600, 1000)}


def test_what_is_transparent_in_a_large_picture_does_not_bleed() -> None:
    image = Image.new("RGBA", (3000, 1500), (0, 0, 0, 0))
    image.paste(RED, (1500, 0, 3000, 1500))

    seen = rgb(encoded(image, "PNG"))

    assert [WHITE, RED] == [seen.getpixel((600, 300)), seen.getpixel((700, 300))]
