"""One image file is read as it is shown, or as it is stored: transparency, orientation, other modes, several frames."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from common.images.encoded import Encoded, Picture, describe_remarks, read_image
from common.system.errors import InputError

ALPHA = np.array([[0, 255, 128], [255, 0, 64]], np.uint8)
ON_WHITE = 255 - ALPHA  # black of this alpha, laid over white


def read(content: bytes, decoding: str = "shown") -> Picture:
    return read_image(Encoded(content, "it"), None, decoding)


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def png(colour_type: int, bits: int, size: tuple[int, int], rows: list[bytes], **chunks: bytes) -> bytes:
    """A PNG of kinds that Pillow does not write. size: width, height."""

    def chunk(name: bytes, content: bytes) -> bytes:
        whole = name + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0))
    between = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + head + between + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
def test_content_in_alpha_is_laid_over_white(mode: str, kind: str) -> None:
    image = Image.new("RGB" if mode == "RGBA" else "L", (3, 2))
    image.putalpha(Image.fromarray(ALPHA))
    content = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    channels = 3 if mode == "RGBA" else 1
    shown = read(content)
    assert np.array_equal(shown.pixels, np.broadcast_to(ON_WHITE, (channels, 2, 3)))
    assert shown.remarks == ("transparent",)
    stored = read(content, "stored")
    assert np.array_equal(stored.pixels, np.zeros((channels, 2, 3)))
    assert stored.remarks == ("transparent",)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_changes_nothing(mode: str) -> None:
    draws = np.random.default_rng(0)
    shape = (5, 4, 3) if mode == "RGBA" else (5, 4)
    plain = Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8))
    image = plain.copy()
    image.putalpha(255)
    picture = read(saved(image, "PNG"))
    assert picture.remarks == ()
    assert np.array_equal(picture.pixels, read(saved(plain, "PNG")).pixels)


def paletted(transparency: int | bytes | None) -> bytes:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 200, 10, 20, 0, 0, 0])
    return saved(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def test_palettes_may_be_transparent() -> None:
    black, red, white, half = (0, 0, 0), (200, 10, 20), (255, 255, 255), (127, 127, 127)
    cases = [(None, [black, red, black]), (0, [white, red, black]), (bytes([128, 255, 0]), [half, red, white])]
    for transparency, colours in cases:
        shown = read(paletted(transparency))
        assert shown.pixels[:, 0].T.tolist() == list(map(list, colours))
        assert shown.remarks == (() if transparency is None else ("transparent",))
        assert read(paletted(transparency), "stored").pixels[:, 0].T.tolist() == [list(black), list(red), list(black)]


@pytest.mark.parametrize(
    ("colour_type", "bits", "row", "transparent", "shown"),
    [
        (0, 1, bytes([0b01000000]), (1,), [0, 255]),  # grayscale of so many bits; both pixels are written as they are
        (0, 1, bytes([0b01000000]), (0,), [255, 255]),
        (0, 2, bytes([0b00100000]), (2,), [0, 255]),
        (0, 2, bytes([0b00100000]), (0,), [255, 170]),
        (0, 4, bytes([0x3F]), (3,), [255, 255]),
        (0, 4, bytes([0x36]), (6,), [51, 255]),
        (0, 8, bytes([7, 9]), (9,), [7, 255]),
        (2, 8, bytes([1, 2, 3, 4, 5, 6]), (1, 2, 3), [[255, 4], [255, 5], [255, 6]]),
        (2, 16, bytes([1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]), (256, 512, 768), [[255, 4], [255, 5], [255, 6]]),
    ],
)
def test_one_colour_may_be_transparent(
    colour_type: int, bits: int, row: bytes, transparent: tuple[int, ...], shown: list
) -> None:
    content = png(colour_type, bits, (2, 1), [row], tRNS=struct.pack(f">{len(transparent)}H", *transparent))
    picture = read(content)
    assert picture.pixels[:, 0].tolist() == ([shown] if colour_type == 0 else shown)
    assert "transparent" in picture.remarks


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_followed(kind: str, orientation: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened)
        unturned = opened.copy()
    picture = read(content)
    assert np.array_equal(picture.pixels.transpose(1, 2, 0), np.asarray(expected))
    assert picture.size == expected.size == ((16, 24) if orientation >= 5 else (24, 16))
    stored = read(content, "stored")
    assert np.array_equal(stored.pixels.transpose(1, 2, 0), np.asarray(unturned))
    turned = orientation > 1 and kind != "TIFF"  # which Pillow itself turns, whatever is asked for
    assert picture.remarks == stored.remarks == (("turned",) if turned else ())
    assert np.array_equal(picture.pixels, stored.pixels) != turned


def test_transparent_images_are_turned_too() -> None:
    image = Image.new("L", (3, 2))
    image.putalpha(Image.fromarray(ALPHA))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read(saved(image, "PNG", exif=exif))
    assert np.array_equal(picture.pixels[0], np.rot90(ON_WHITE, -1))
    assert picture.remarks == ("turned", "transparent")


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_malformed_exif_turns_nothing(exif: bytes) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    broken, plain = read(saved(image, "JPEG", exif=exif)), read(saved(image, "JPEG"))
    assert np.array_equal(broken.pixels, plain.pixels)
    assert broken.remarks == ()


def test_colours_of_other_modes() -> None:
    """Whole numbers of the colour, where the format is exact; a JPEG is near."""
    for colour, stored in (((255, 0, 0), (0, 255, 255, 0)), ((0, 0, 0), (0, 0, 0, 255)), ((255,) * 3, (0,) * 4)):
        cmyk = Image.new("CMYK", (8, 8), stored)
        assert read(saved(cmyk, "TIFF")).pixels[:, 0, 0].tolist() == list(colour)
        assert read(saved(cmyk, "JPEG", quality=100)).pixels[:, 0, 0] == pytest.approx(np.array(colour), abs=3)
    assert read(saved(Image.new("1", (2, 2), 1), "PNG")).pixels.tolist() == [[[255, 255]] * 2]
    ycc = Image.new("RGB", (8, 8), (10, 200, 30)).convert("YCbCr")
    assert read(saved(ycc, "TIFF")).pixels[:, 0, 0] == pytest.approx(np.array([10, 200, 30]), abs=3)


@pytest.mark.parametrize(
    "content",
    [
        png(2, 16, (1, 1), [bytes([10, 255, 20, 0, 30, 0])]),
        b"P6 1 1 65535\n" + bytes([10, 10, 20, 20, 30, 30]),
        b"P6 1 1 1023\n" + bytes([0, 40, 0, 80, 0, 120]),
    ],
)
def test_sixteen_bits_per_channel_are_told(content: bytes) -> None:
    picture = read(content)
    assert picture.pixels.flatten().tolist() == [10, 20, 30]
    assert picture.remarks == ("deep",)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grayscale_is_refused(dtype: type) -> None:
    with pytest.raises(InputError, match="more than 8 bits per channel"):
        read(saved(Image.fromarray(np.ones((2, 2), dtype)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_read_and_told(kind: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    how = {"lossless": True} if kind == "WEBP" else {}
    picture = read(saved(frames[0], kind, save_all=True, append_images=frames[1:], **how))
    assert picture.pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert picture.remarks == ("frames",)
    assert read(saved(frames[0], kind, **how)).remarks == ()


def test_a_gif_may_be_transparent() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 200, 10, 20])
    picture = read(saved(image, "GIF", transparency=0))
    assert picture.pixels[:, 0].T.tolist() == [[255, 255, 255], [200, 10, 20]]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read() -> None:
    picture = read(saved(Image.new("RGB", (16, 16), (200, 100, 50)), "AVIF", quality=100))
    assert picture.pixels[:, 8, 8] == pytest.approx(np.array([200, 100, 50]), abs=4)


def test_one_line_says_what_is_shown_otherwise() -> None:
    assert describe_remarks({}, 9, "cats", "shown") == ""
    remarks = {"frames": 4, "turned": 3, "transparent": 2, "deep": 1}
    assert describe_remarks(remarks, 9, "cats", "shown") == (
        "of the 9 images of cats, 3 are turned as the EXIF orientation says, 2 are laid over white because of "
        "transparent pixels, 1 is reduced from 16 to 8 bits per channel, 4 are read as the first of several frames "
        "(--decoding stored ignores orientation and transparency)"
    )
    assert describe_remarks({"turned": 1}, 9, "cats", "stored") == (
        "of the 9 images of cats, 1 is not turned as the EXIF orientation says "
        "(--decoding shown follows orientation and transparency)"
    )
