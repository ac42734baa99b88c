"""The common image codecs: what a file gives back, and how many of its bytes are counted."""

import re
import struct

import numpy as np
import pytest
from PIL import features

from common.system.errors import InputError
from common.training.image_codecs import codec_of, decode_all, psnr

NAMES = ["png", "jpeg", "webp", "avif"]
STANDARD_TABLES = (31 + 181) * 2  # bytes of the four tables of the standard, their markers and lengths among them


def picture(channels, side=32):
    """A ramp with noise, uint8 [ch, side, side]."""
    ramp = np.linspace(40, 200, side * side).reshape(side, side)
    noise = np.random.default_rng(0).normal(0, 8, (channels, side, side))
    return (ramp + noise).clip(0, 255).astype(np.uint8)


def stored(name, channels=3, side=32, quality=60, headers=True):
    codec = codec_of(name, channels)
    image = picture(channels, side)
    return codec, image, codec.encode(image, quality if codec.qualities else None, headers)


def searched(name, content):
    """The bytes of a file's own, found by looking for what is around them instead of walking through the file."""
    if name == "png":
        at = [each.start() for each in re.finditer(b"IDAT", content)]
        return sum(struct.unpack(">I", content[place - 4 : place])[0] for place in at)
    if name == "jpeg":
        scan = content.index(b"\xff\xda")
        tables = content[content.index(b"\xff\xc4") : scan]
        header = 2 + struct.unpack(">H", content[scan + 2 : scan + 4])[0]
        return len(content) - 2 - scan - header + (len(tables) if len(tables) < STANDARD_TABLES // 2 else 0)
    if name == "webp":
        return struct.unpack("<I", content[content.index(b"VP8 ") + 4 :][:4])[0] - 7
    place = content.index(b"mdat")
    return len(content) - place - 4  # the last box


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_comes_back_nearly_as_it_was(name, channels):
    codec, image, file = stored(name, channels)
    decoded = codec.decode(file, channels)
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    if name == "png":
        assert (decoded == image).all()
        assert psnr(decoded, image) is None
    else:
        assert 20 < psnr(decoded, image) < 60


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_its_own_are_those_found_in_the_file(name, channels, headers):
    _, _, file = stored(name, channels, headers=headers)
    assert 0 < file.own < len(file.content)
    assert file.own == searched(name, file.content)
    assert file.counted(True) == len(file.content)
    assert file.counted(False) == file.own


def test_a_small_jpeg_has_tables_of_its_own_only_if_the_standard_ones_count():
    _, _, whole = stored("jpeg", headers=True)
    _, _, bare = stored("jpeg", headers=False)
    assert len(whole.content) < len(bare.content)
    assert bare.own < whole.own
    _, _, large = stored("jpeg", side=512, quality=95, headers=False)  # here its own tables pay for themselves
    _, _, same = stored("jpeg", side=512, quality=95, headers=True)
    assert large == same


def test_the_lowest_quality_is_the_smallest_file():
    for name in NAMES[1:]:
        codec, image, _ = stored(name)
        sizes = [len(codec.encode(image, quality, True).content) for quality in (codec.qualities[0], 50, 95)]
        assert sizes == sorted(set(sizes))


def test_the_signal_to_noise_ratio_is_that_of_all_images_together():
    images = np.zeros((2, 1, 2, 2), np.uint8)
    off = images.copy()
    off[0] += 10
    assert psnr(off, images) == pytest.approx(10 * np.log10(255**2 / 50))
    codec = codec_of("png", 1)
    assert (decode_all(codec, [codec.encode(each, None, True) for each in off], 1) == off).all()


def test_a_pillow_without_the_codec_is_refused(monkeypatch):
    monkeypatch.setattr(features, "get_supported", lambda: ["jpg", "zlib"])
    assert codec_of("jpeg", 3).name == "jpeg"
    with pytest.raises(InputError, match="cannot write avif files: install another"):
        codec_of("avif", 3)
