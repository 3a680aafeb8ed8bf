"""Structures that no real file has, and metadata that must not reject a sound image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from analysis.file_structure import read_jpeg, webp_size, without_png_metadata
from analysis.images import DamagedPictureError, OversizedPictureError
from analysis.pictures import PictureReader
from tests import odd_images
from tests.odd_images import encoded, png_of_bits

SCANS = {name: content for name, content in odd_images.SLOW_JPEG.items() if "scans" in name}


@pytest.mark.parametrize("name", SCANS)
def test_a_jpeg_of_more_scans_than_any_real_file_has_is_rejected_before_decoding(
    name: str,
) -> None:
    with pytest.raises(DamagedPictureError, match="the JPEG has more than 32 scans"):
        read_jpeg(SCANS[name])


@pytest.mark.parametrize("name", sorted(odd_images.SLOW_JPEG.keys() - SCANS.keys()))
def test_a_jpeg_that_is_slow_to_parse_is_rejected_before_parsing(name: str) -> None:
    with pytest.raises(DamagedPictureError, match="the JPEG has more than"):
        read_jpeg(odd_images.SLOW_JPEG[name])


def test_the_most_scans_that_are_allowed_are_decoded() -> None:
    content = odd_images.jpeg_of_scans(32, 64)

    assert 32 == read_jpeg(content).scans
    assert 64 == PictureReader().decode(content).picture.width


@pytest.mark.parametrize("name", odd_images.PNG_METADATA)
def test_a_png_is_accepted_whatever_its_metadata(name: str) -> None:
    decoded = PictureReader().decode(odd_images.PNG_METADATA[name])

    assert (9, 7) == (decoded.picture.width, decoded.picture.height)


@pytest.mark.parametrize(("width", "height"), odd_images.THIN)
def test_an_extremely_thin_image_is_oversized(width: int, height: int) -> None:
    with pytest.raises(OversizedPictureError, match="at most 65535 a side are decoded"):
        PictureReader().inspect(png_of_bits(width, height))


def test_a_photo_that_was_cut_and_closed_again_is_rejected() -> None:
    accepted = []
    for name, content in odd_images.cut_photos().items():
        try:
            PictureReader().decode(content)
        except DamagedPictureError as error:
            assert "truncated" in str(error)  # noqa: PT017 - of each
        else:
            accepted.append(name)

    assert [] == accepted


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(16, 16), (3000, 2000)])
def test_an_image_of_the_grey_of_missing_data_is_accepted(mode: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (128, 128, 128)).convert(mode)

    PictureReader().decode(encoded(image, "JPEG"))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_of_a_webp_is_read_without_its_decoder(mode: str, lossless: bool) -> None:  # noqa: FBT001 - from the table
    content = encoded(Image.new(mode, (300, 17), 100), "WEBP", lossless=lossless)

    assert (300, 17) == webp_size(content)


@given(st.binary(max_size=200))
def test_any_bytes_have_a_structure_or_none(content: bytes) -> None:
    assert len(read_jpeg(b"\xff\xd8" + content).kept) <= len(content) + 2
    assert len(without_png_metadata(b"\x89PNG\r\n\x1a\n" + content)) <= len(content) + 8
    assert 0 <= min(webp_size(b"RIFF\0\0\0\0WEBP" + content))
