"""What uploads are accepted: made pictures of every type, and everything that is done to them."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from analysis.images import (
    MAX_PIXELS,
    DamagedPictureError,
    OversizedPictureError,
    Picture,
    PictureError,
    UnsupportedPictureError,
)
from analysis.pictures import LargePictureError, PictureReader

if TYPE_CHECKING:
    from collections.abc import Callable

# pytest makes errors of all warnings and so overrules what analysis.pictures asks for.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def inspect(content: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    return PictureReader(max_pixels=max_pixels).inspect(content)


def noise(mode: str, size: tuple[int, int] = (37, 23)) -> Image.Image:
    """Make a picture that compresses badly, so that cuts and flips hit pixels."""
    data = random.Random(mode).randbytes(size[0] * size[1] * len(Image.new(mode, (1, 1)).tobytes()))
    return Image.frombytes(mode, size, data)


def encoded(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, pillow_format, **options)
    return file.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def two_frames(pillow_format: str) -> bytes:
    return encoded(
        noise("RGB"), pillow_format, save_all=True, append_images=[Image.new("RGB", (37, 23))]
    )


GREY_16 = Image.frombytes("I;16", (37, 23), random.Random(16).randbytes(37 * 23 * 2))

#: One of each type and of each kind that cameras and programs make.
PICTURES = {
    "jpeg": encoded(noise("RGB"), "JPEG"),
    "progressive jpeg": encoded(noise("RGB"), "JPEG", progressive=True),
    "grey jpeg": encoded(noise("L"), "JPEG"),
    "cmyk jpeg": encoded(noise("CMYK"), "JPEG"),
    "jpeg of several pictures (mpo)": two_frames("MPO"),
    "png": encoded(noise("RGB"), "PNG"),
    "png with alpha": encoded(noise("RGBA"), "PNG"),
    "png of 16 bits": encoded(GREY_16, "PNG"),
    "png of 1 bit": encoded(noise("L").convert("1"), "PNG"),
    "png with a transparent palette": encoded(
        noise("RGB").quantize(), "PNG", transparency=bytes(range(200))
    ),
    "animated png": two_frames("PNG"),
    "gif": encoded(noise("P"), "GIF"),
    "animated gif": two_frames("GIF"),
    "webp": encoded(noise("RGB"), "WEBP"),
    "lossless webp with alpha": encoded(noise("RGBA"), "WEBP", lossless=True),
    "animated webp": two_frames("WEBP"),
    "bmp": encoded(noise("RGB"), "BMP"),
    "tiff": encoded(noise("RGB"), "TIFF"),
    "tiff with deflate": encoded(noise("RGB"), "TIFF", compression="tiff_adobe_deflate"),
    "big tiff": encoded(noise("RGB"), "TIFF", big_tiff=True),
    "tiff of 32-bit floats": encoded(noise("F"), "TIFF"),
    "tiff of pages": two_frames("TIFF"),
}


def media_type(name: str) -> str:
    (known,) = [kind for kind in ("jpeg", "png", "gif", "webp", "bmp", "tiff") if kind in name]
    return f"image/{known}"


@pytest.mark.parametrize("name", PICTURES)
def test_a_good_picture_is_accepted_and_measured(name: str) -> None:
    assert Picture(media_type(name), 37, 23) == inspect(PICTURES[name])


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_single_pixel_is_a_picture(pillow_format: str) -> None:
    content = encoded(Image.new("RGB", (1, 1)), pillow_format)

    assert Picture(f"image/{pillow_format.lower()}", 1, 1) == inspect(content)


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP"])
def test_the_size_is_what_is_stored_whatever_exif_says(pillow_format: str) -> None:
    content = encoded(noise("RGB"), pillow_format, exif=orientation(6))

    picture = inspect(content)

    assert (37, 23) == (picture.width, picture.height)


@pytest.mark.parametrize("name", PICTURES)
def test_bytes_after_the_end_are_allowed(name: str) -> None:
    assert inspect(PICTURES[name]) == inspect(PICTURES[name] + b"PK\x03\x04 and more")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 1000, id="zeros"),
        pytest.param(b"\x7fELF\x02\x01\x01" + bytes(100), id="program"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', id="svg"),
        pytest.param(b"%PDF-1.7\n%%EOF", id="pdf"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", id="eps"),
        pytest.param(b"<html><img src=x onerror=alert(1)>", id="html"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="zip"),
        pytest.param(b"\0\0\0\x20ftypavif" + bytes(100), id="avif"),
        pytest.param(encoded(noise("RGB"), "PPM"), id="a type that Pillow knows but we do not"),
        pytest.param(b"RIFF\x24\0\0\0WAVEfmt ", id="riff that is sound"),
        pytest.param(b" " + PICTURES["png"], id="a picture that starts late"),
        pytest.param(PICTURES["png"][:7], id="too short to tell"),
    ],
)
def test_what_is_no_picture_is_unsupported(content: bytes) -> None:
    with pytest.raises(UnsupportedPictureError, match="supported are JPEG, PNG, WEBP, GIF"):
        inspect(content)


def test_an_empty_upload_is_called_empty() -> None:
    with pytest.raises(UnsupportedPictureError, match="the image is empty"):
        inspect(b"")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"GIF89a<script>alert(1)</script>", id="gif that is a script"),
        pytest.param(b"\xff\xd8\xff\xe0", id="jpeg without anything"),
        pytest.param(b"BM" + bytes(200), id="bmp of zeros"),
        pytest.param(b"II*\0\x08\0\0\0\0\0", id="tiff without tags"),
        pytest.param(b"RIFF\x04\0\0\0WEBP", id="webp without chunks"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IEND\xaeB`\x82", id="png without pixels"),
    ],
)
def test_what_only_starts_like_a_picture_is_damaged(content: bytes) -> None:
    with pytest.raises(DamagedPictureError, match="starts like a"):
        inspect(content)


# Of these some last bytes hold no pixel of the first frame: the next frame, padding, an end mark.
ENDS_WITHOUT_PIXELS = {
    "jpeg of several pictures (mpo)",
    "gif",
    "animated gif",
    "bmp",
    "tiff of pages",
}


@pytest.mark.parametrize("name", sorted(PICTURES.keys() - ENDS_WITHOUT_PIXELS))
def test_a_truncated_picture_is_refused_wherever_it_is_cut(name: str) -> None:
    content = PICTURES[name]

    accepted = [length for length in range(len(content)) if is_accepted(content[:length])]

    assert [] == accepted


@pytest.mark.parametrize("name", sorted(ENDS_WITHOUT_PIXELS))
def test_a_cut_is_accepted_only_if_no_pixel_of_the_first_frame_is_lost(name: str) -> None:
    content = PICTURES[name]
    cuts = [content[:length] for length in range(len(content))]

    accepted = [cut for cut in cuts if is_accepted(cut)]

    assert 0 < len(accepted) < len(content)
    assert {first_frame(content)} == {first_frame(cut) for cut in accepted}


def first_frame(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def is_accepted(content: bytes) -> bool:
    try:
        inspect(content)
    except PictureError:
        return False
    return True


@pytest.mark.parametrize("name", ["png", "png with alpha", "png of 16 bits"])
def test_a_flipped_byte_in_the_pixels_of_a_png_is_found(name: str) -> None:
    content = bytearray(PICTURES[name])
    start = content.index(b"IDAT") + 4
    end = content.index(b"IEND") - 8  # before the next length and the check sum of these pixels
    accepted = []
    for position in range(start, end):
        content[position] ^= 0xFF
        if is_accepted(bytes(content)):
            accepted.append(position)
        content[position] ^= 0xFF

    assert [] == accepted


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def tiff(*, width: int = 1, height: int = 1, tile: tuple[int, int]) -> bytes:
    """Make a TIFF of one pixel that says what you like of its tiles."""
    data = zlib.compress(bytes(64))
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    tags |= {322: tile[0], 323: tile[1], 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return header + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(png(30_000, 30_000), id="png"),
        pytest.param(png(10_000, 10_000), id="png that Pillow only warns of"),
        pytest.param(png(2**31 - 1, 1), id="png of one endless row"),
        pytest.param(b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\0;", id="gif"),
        pytest.param(
            b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
            id="gif with a frame larger than its screen",
        ),
        pytest.param(
            bytes.fromhex("524946461a000000574542505650384c0d0000002fefe3fb18071011118888fe0700"),
            id="webp of 34 bytes that would take 1.3 GB",
        ),
        pytest.param(tiff(tile=(40_000, 40_000)), id="tiff of one pixel in a huge tile"),
        pytest.param(tiff(width=40_000, height=40_000, tile=(16, 16)), id="tiff"),
    ],
)
def test_a_bomb_is_oversized(content: bytes) -> None:
    with pytest.raises(OversizedPictureError):
        inspect(content)


def test_a_large_jpeg_is_oversized_by_its_header() -> None:
    content = bytearray(PICTURES["jpeg"])
    sizes = content.index(b"\xff\xc0") + 5
    content[sizes : sizes + 4] = struct.pack(">HH", 10_000, 10_000)

    with pytest.raises(OversizedPictureError, match="10000 x 10000 pixels; at most 85000000"):
        inspect(bytes(content))


def test_the_limit_is_the_last_size_that_is_accepted() -> None:
    content = encoded(Image.new("L", (40, 25)), "PNG")

    inspect(content, max_pixels=1000)
    with pytest.raises(OversizedPictureError, match="40 x 25 pixels; at most 999 in all"):
        inspect(content, max_pixels=999)


def test_a_webp_pixel_counts_four_times_because_it_takes_that_memory() -> None:
    content = encoded(Image.new("RGB", (40, 25)), "WEBP")

    inspect(content, max_pixels=4000)
    with pytest.raises(OversizedPictureError, match="at most 999 in all"):
        inspect(content, max_pixels=3999)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(
            png(4, 4, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000)))), id="text"
        ),
        pytest.param(
            png(4, 4, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100_000_000)))), id="profile"
        ),
    ],
)
def test_metadata_that_swells_is_refused_or_left_packed(content: bytes) -> None:
    # Pillow stops at 1 MB, but for a colour profile it goes on without: either will do.
    import tracemalloc

    tracemalloc.start()
    is_accepted(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 20_000_000


def test_corrupt_metadata_is_no_reason_to_refuse_and_warns_nobody() -> None:
    # In a process of its own: here pytest has the say about warnings.
    jpeg = PICTURES["jpeg"]
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x1a\x01\x05\0\xff\xff\xff\x7f\xff\xff\xff\x7f"
    without_jfif = jpeg[:2] + jpeg[4 + struct.unpack(">H", jpeg[4:6])[0] :]
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    content = without_jfif[:2] + segment + without_jfif[2:]
    program = (
        "import sys; from analysis.pictures import LargePictureError, PictureReader; "
        "print(PictureReader().inspect(sys.stdin.buffer.read()).media_type)"
    )

    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input=content,
        capture_output=True,
        check=True,
    )

    assert (b"image/jpeg\n", b"") == (process.stdout, process.stderr)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_a_picture_error(content: bytes) -> None:
    is_accepted(content)


MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, 5000), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 5000), st.integers(1, 64)),
        st.tuples(st.just("repeat"), st.integers(0, 5000), st.integers(1, 64)),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(PICTURES)), MUTATIONS)
@example("tiff", [("flip", 4, 255)])
def test_mutated_pictures_raise_nothing_but_a_picture_error(
    name: str, mutations: list[tuple[str, int, int]]
) -> None:
    content = PICTURES[name]
    for how, where, amount in mutations:
        at = where % max(1, len(content))
        content = MUTATE[how](content, at, amount)

    is_accepted(content)


MUTATE: dict[str, Callable[[bytes, int, int], bytes]] = {
    "flip": lambda content, at, amount: (
        content[:at] + bytes(byte ^ amount for byte in content[at : at + 1]) + content[at + 1 :]
    ),
    "cut": lambda content, at, amount: content[:at] + content[at + amount :],
    "repeat": lambda content, at, amount: content[:at] + content[at : at + amount] + content[at:],
}


@pytest.mark.parametrize(
    ("content", "is_large"),
    [
        pytest.param(PICTURES["png"], False, id="small"),
        pytest.param(PICTURES["png"] + bytes(4_000_000), False, id="long file"),
        pytest.param(encoded(Image.new("L", (5000, 4000)), "PNG"), False, id="a byte a pixel"),
        pytest.param(encoded(Image.new("L", (5000, 4001)), "PNG"), True, id="many pixels"),
        pytest.param(encoded(Image.new("RGB", (2500, 2001)), "PNG"), True, id="four bytes a pixel"),
        pytest.param(encoded(Image.new("RGB", (5000, 4000)), "JPEG"), False, id="scaled jpeg"),
        pytest.param(
            encoded(Image.new("RGB", (4000, 3000)), "JPEG", progressive=True),
            True,
            id="progressive",
        ),
        pytest.param(
            encoded(Image.new("RGB", (1200, 1050)), "WEBP"), True, id="webp, whose pixels take more"
        ),
    ],
)
def test_a_picture_is_large_by_the_memory_that_decoding_takes(
    content: bytes,
    is_large: bool,  # noqa: FBT001 - of a parametrized test
) -> None:
    try:
        PictureReader().decode(content, large_from_bytes=20_000_001)
        found = False
    except LargePictureError:
        found = True

    assert is_large == found
    PictureReader().decode(content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded(noise("RGB", (640, 480)), "JPEG", progressive=True), id="progressive"),
        pytest.param(encoded(Image.new("RGBA", (640, 480)), "PNG"), id="png"),
        pytest.param(encoded(Image.new("RGB", (640, 480)), "WEBP"), id="webp"),
    ],
)
def test_a_picture_that_takes_more_memory_than_is_allowed_is_oversized(content: bytes) -> None:
    with pytest.raises(OversizedPictureError, match="bytes of memory to decode; at most 900,000"):
        PictureReader(max_memory_bytes=900_000).inspect(content)


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_side_that_is_too_long_is_oversized_however_few_pixels_there_are(
    size: tuple[int, int],
) -> None:
    with pytest.raises(OversizedPictureError, match="at most 65535 a side"):
        inspect(encoded(Image.new("1", size), "PNG"))


def test_the_longest_sides_are_accepted() -> None:
    for size in ((65_535, 2), (2, 65_535)):
        decoded = PictureReader().decode(encoded(Image.new("RGB", size), "PNG"))

        assert size == (decoded.picture.width, decoded.picture.height)
        assert max(size) // min(size) >= 1280 >= max(decoded.preview.width, decoded.preview.height)
