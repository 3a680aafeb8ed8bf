"""Image files that no camera makes: extremely thin, of endless scans, with broken metadata.

Each family has more members than one, so that what is tested is a kind and not a file.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def encoded(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    """Return *image* as a file."""
    file = io.BytesIO()
    image.save(file, pillow_format, **options)
    return file.getvalue()


# PNG


def chunk(kind: bytes, data: bytes = b"", *, checksum: int | None = None) -> bytes:
    """Return a chunk of a PNG."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum or right)


def png_of_bits(width: int, height: int) -> bytes:
    """Return a black PNG of one bit a pixel, made without holding its pixels."""
    row = bytes(1 + (width + 7) // 8)
    rows_at_once = max(1, 4_000_000 // len(row))
    compressor = zlib.compressobj(1)
    data = bytearray()
    for start in range(0, height, rows_at_once):
        data += compressor.compress(row * min(rows_at_once, height - start))
    data += compressor.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", bytes(data)) + chunk(b"IEND")


def png_with(*before: bytes, after: bytes = b"") -> bytes:
    """Return a sound PNG with more chunks before and after its pixels."""
    plain = encoded(Image.new("RGB", (9, 7), (200, 30, 40)), "PNG")
    start, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    return plain[:start] + b"".join(before) + plain[start:end] + after + plain[end:]


_LONG = zlib.compress(bytes(3_000_000))

#: PNGs whose pixels are whole and whose metadata is not, or is huge.
PNG_METADATA = {
    "huge compressed text": png_with(chunk(b"zTXt", b"comment\0\0" + _LONG)),
    "huge profile": png_with(chunk(b"iCCP", b"profile\0\0" + _LONG)),
    "huge international text": png_with(chunk(b"iTXt", b"note\0\1\0\0\0" + _LONG)),
    "huge text after the pixels": png_with(after=chunk(b"zTXt", b"note\0\0" + _LONG)),
    "profile that is no zlib": png_with(chunk(b"iCCP", b"profile\0\0no zlib")),
    "profile of an unknown method": png_with(chunk(b"iCCP", b"profile\0\7" + _LONG)),
    "empty profile": png_with(chunk(b"iCCP")),
    "text with a wrong checksum": png_with(chunk(b"tEXt", b"a\0b", checksum=1)),
    "time with a wrong checksum": png_with(chunk(b"tIME", bytes(7), checksum=1)),
    "orientation with a wrong checksum": png_with(chunk(b"eXIf", bytes(9), checksum=1)),
    "short gamma": png_with(chunk(b"gAMA", b"a")),
    "short chromaticities": png_with(chunk(b"cHRM", b"ab")),
    "short resolution": png_with(chunk(b"pHYs", b"abc")),
    "short animation control": png_with(chunk(b"acTL", b"a")),
    "short frame control": png_with(chunk(b"acTL", bytes(8)), chunk(b"fcTL", b"abc")),
    "empty rendering intent": png_with(chunk(b"sRGB")),
    "several gigabytes of frames": png_with(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "a thousand texts": png_with(*[chunk(b"tEXt", b"k\0" + bytes(2000))] * 1000),
    "unknown chunks": png_with(chunk(b"abCd", b"x"), after=chunk(b"zzZz", b"y")),
}

#: Sizes that are accepted by their pixels and would take gigabytes by their long side.
THIN = [
    (1, 80_000_000),
    (1, 20_000_000),
    (2, 42_000_000),
    (1, 10_000_000),
    (7, 9_000_000),
    (16, 5_000_000),
    (80_000_000, 1),
    (84_000_000, 1),
    (28_000_000, 3),
    (65_536, 1),
    (1, 65_536),
    (1_000_000, 80),
]


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    """Return a marker segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg_of_scans(scans: int, side: int) -> bytes:
    """Return a grey progressive JPEG, each scan of which refines all blocks by nothing.

    A code of one bit stands for zero DC differences, another for runs of blocks without AC.
    """

    def codes(kind: int, symbol: int) -> bytes:
        return segment(0xC4, bytes((kind << 4, 1, *(0,) * 15, symbol)))

    def packed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")

    blocks = ((side + 7) // 8) ** 2
    longest = (1 << 15) - 1  # of a run: symbol 0xE0 has 14 more bits
    runs = "".join("0" + "1" * 14 for _ in range(blocks // longest + 1))
    head = segment(0xDB, bytes(1) + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    first = codes(0, 0) + segment(0xDA, b"\1\1\0\0\0\0") + packed("0" * blocks)
    again = segment(0xDA, b"\1\1\0\1\x3f\x10") + packed(runs)
    return b"\xff\xd8" + head + first + codes(1, 0xE0) + again * (scans - 1) + b"\xff\xd9"


def jpeg_with(between: bytes) -> bytes:
    """Return a sound JPEG with *between* after its JFIF segment."""
    plain = encoded(Image.new("RGB", (9, 7), (200, 30, 40)), "JPEG")
    return plain[:20] + between + plain[20:]


#: JPEGs that take a decoder, or Pillow's own parser, far longer than their size lets expect.
SLOW_JPEG = {
    **{
        f"{scans} scans of {side}": jpeg_of_scans(scans, side)
        for scans, side in (
            (33, 64),
            (100, 1000),
            (120, 8000),
            (120, 4000),
            (300, 9000),
            (1000, 3000),
            (2000, 500),
            (1000, 8),
            (64, 9000),
            (5000, 64),
            (40, 2000),
        )
    },
    "19 MB of fill bytes": jpeg_with(b"\xff" * 19_000_000),
    "1 MB of fill bytes": jpeg_with(b"\xff" * 1_000_000),
    "5,000 fill bytes": jpeg_with(b"\xff" * 5_000),
    "19 MB of zeros": jpeg_with(bytes(19_000_000)),
    "19 MB of stuffed zeros": jpeg_with(b"\xff\0" * 9_500_000),
    "a million empty comments": jpeg_with(segment(0xFE, b"") * 1_000_000),
    "a million restart markers": jpeg_with(b"\xff\xd0" * 1_000_000),
    "a million empty tables": jpeg_with(segment(0xC4, b"") * 1_000_000),
    "20,000 small profiles": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1") * 20_000),
}


def cut_photos() -> dict[str, bytes]:
    """Return photos whose ends are missing, each closed by an end marker."""
    return {
        f"{path.stem} cut at {share:.0%}": content[: int(len(content) * share)] + b"\xff\xd9"
        for path in sorted(PHOTOS.glob("*.jpg"))[:6]
        for content in [path.read_bytes()]
        for share in (0.2, 0.5, 0.9)
    }


# TIFF


def noisy_tiff(tags: int, *, kind: int = 17) -> bytes:
    """Return a TIFF of 8 x 8 pixels with private tags, about each of which libtiff complains."""
    pixels = zlib.compress(bytes(range(64)))
    pixels += bytes(len(pixels) % 2)
    known = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(pixels)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in known.items()]
    entries += [struct.pack("<HHII", 43_000 + number, kind, 1, 65) for number in range(tags)]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


NOISY_TIFF = {
    f"{tags} tags of type {kind}": noisy_tiff(tags, kind=kind)
    for tags, kind in (
        (10, 17),
        (100, 17),
        (1000, 17),
        (4000, 17),
        (500, 17),
        (4000, 0),
        (4000, 99),
        (4000, 12),
        (4000, 77),
        (4000, 3),
        (2500, 17),
    )
}


# The largest that is allowed


def largest() -> dict[str, bytes]:
    """Return an image of (nearly) 85 megapixels, or as many as are allowed, of each kind."""
    tile = Image.open(PHOTOS / "panda.jpg").resize((106, 80))
    image = tile.resize((10_600, 8_000), Image.Resampling.NEAREST)
    transparent = image.copy()
    transparent.putalpha(image.getchannel("G"))
    part = image.crop((0, 0, 5_300, 4_000))
    return {
        "transparent PNG": encoded(transparent, "PNG", compress_level=1),
        "16-bit PNG": encoded(Image.frombytes("I;16", image.size, bytes(170_000_000)), "PNG"),
        "progressive JPEG": encoded(image, "JPEG", quality=40, progressive=True),
        "progressive JPEG without subsampling": encoded(
            image.crop((0, 0, 8_000, 8_000)), "JPEG", quality=30, progressive=True, subsampling=0
        ),
        "JPEG": encoded(image, "JPEG", quality=40),
        "TIFF": encoded(transparent, "TIFF", compression="tiff_adobe_deflate"),
        "WEBP": encoded(part, "WEBP", quality=20, method=0),
        "GIF": encoded(image.quantize(16), "GIF"),
        "float TIFF": encoded(
            Image.new("F", image.size, 0.5), "TIFF", compression="tiff_adobe_deflate"
        ),
    }
