"""The common image codecs: an 8-bit image becomes a file and the file an image, with a count of the bytes it needs.

A file is counted twice. `size` is all of it. `own` leaves out what is the same in every file of a class, because images
of one shape have one quality: signatures, sizes, quantisation tables, containers. What remains is

    png     the data of the chunks IDAT
    jpeg    the scan, and Huffman tables that are not the standard ones
    webp    the data of the chunk "VP8 " without its start code and the sides of the image
    avif    the data of the box mdat
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from common.images.pixels import StoredAs
from common.system.errors import InputError

_VP8_FIXED = 7  # bytes: start code 3, width 2, height 2


class File(NamedTuple):
    """One stored image: the content of the file, and how many of its bytes are the image's own."""

    content: bytes
    own: int

    def counted(self, headers: bool) -> int:
        """The bytes that a budget pays for, with or without headers."""
        return len(self.content) if headers else self.own


@dataclass(frozen=True)
class Codec:
    """How images are stored in files of one kind.

    qualities: the qualities to choose from, the lowest first; empty for a lossless codec. ways: arguments for
    Pillow's `save`; the one that takes the fewest bytes of an image is used. own_bytes: the content of a file -> how
    many of its bytes are its own.
    """

    name: str
    feature: str  # what Pillow's `features` calls the codec
    qualities: range
    ways: tuple[dict[str, Any], ...]
    own_bytes: Callable[[bytes], int]

    def check(self) -> None:
        """Raise InputError if the installed Pillow cannot write such files."""
        from PIL import features

        # A Pillow from before a codec does not know its name, and says so by a warning: None, like "not built in".
        if self.feature not in features.get_supported():
            raise InputError(
                f"this Pillow cannot write {self.name} files: install another (pip install -U 'pillow>=11.3'), or "
                "give another --stored_as"
            )

    def encode(self, image: np.ndarray, quality: int | None, headers: bool) -> File:
        """Store an image, uint8 `[ch, H, W]` with ch 1 or 3.

        quality: one of `qualities`, None for a lossless codec. headers: whether headers count where there are
        several ways to store the image.
        """
        from PIL import Image

        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        named = {} if quality is None else {"quality": quality}
        files = []
        for way in self.ways:
            buffer = io.BytesIO()
            picture.save(buffer, self.name, **named, **way)
            content = buffer.getvalue()
            files.append(File(content, self.own_bytes(content)))
        return min(files, key=lambda file: file.counted(headers))

    def decode(self, file: File, channels: int) -> np.ndarray:
        """The image in a file, uint8 `[ch, H, W]` with as many channels as asked for, 1 or 3."""
        from PIL import Image

        with Image.open(io.BytesIO(file.content)) as picture:
            pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _png_own(content: bytes) -> int:
    own, place = 0, 8  # after the signature
    while place < len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        own += length * (kind == b"IDAT")
        place += 12 + length
    return own


def _jpeg_own(content: bytes) -> int:
    own = 0
    for marker, segment, end in _jpeg_segments(content):
        if marker == 0xC4 and segment not in _standard_tables():
            own += len(segment)
        elif marker == 0xDA:
            own += len(content) - 2 - end  # the scan, up to the marker of the end
    return own


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, bytes and end of each segment up to the header of the scan, the segment's marker among its bytes."""
    place, marker = 2, 0
    while marker != 0xDA:
        marker, length = struct.unpack(">BH", content[place + 1 : place + 4])
        end = place + 2 + length
        yield marker, content[place:end], end
        place = end


@lru_cache
def _standard_tables() -> frozenset[bytes]:
    """The segments that hold the Huffman tables of the standard, of luminance and of colour."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "jpeg")
    return frozenset(segment for marker, segment, _ in _jpeg_segments(buffer.getvalue()) if marker == 0xC4)


def _webp_own(content: bytes) -> int:
    own, place = 0, 12  # after RIFF, the size, and WEBP
    while place < len(content):
        kind, length = struct.unpack("<4sI", content[place : place + 8])
        own += (length - _VP8_FIXED) * (kind == b"VP8 ")
        place += 8 + length + length % 2
    return own


def _avif_own(content: bytes) -> int:
    own, place = 0, 0
    while place < len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        own += (length - 8) * (kind == b"mdat")
        place += length
    return own


# At about 0.25 bits per number 4:2:0 is better than 4:4:4 for JPEG by 0.1 to 0.2 dB (CIFAR-10, Imagenette at 128 px),
# and worse for AVIF by as much at 32 px (at 128 px they are equal). Huffman tables of an image's own take a quarter of
# what the standard ones do, but where those are free they cost small images more than they save: both ways are tried.
# Speed 4 of AVIF gives 0.3 dB more than Pillow's default 6 and takes 4 times as long; speed 0 gives 0.4 dB more still
# and takes another 8 times. One thread, so that the same images give the same bytes everywhere.
_JPEG = ({"subsampling": "4:2:0", "optimize": True}, {"subsampling": "4:2:0"})
_AVIF, _GRAY_AVIF = ({"subsampling": each, "speed": 4, "max_threads": 1} for each in ("4:4:4", "4:0:0"))


def codec_of(name: StoredAs, channels: int) -> Codec:
    """The codec of this name for images of 1 or 3 channels. Raises InputError if the installed Pillow lacks it."""
    codecs = {
        "png": Codec("png", "zlib", range(0), ({"optimize": True},), _png_own),
        "jpeg": Codec("jpeg", "jpg", range(1, 101), _JPEG, _jpeg_own),
        "webp": Codec("webp", "webp", range(101), ({"method": 6},), _webp_own),
        "avif": Codec("avif", "avif", range(101), (_GRAY_AVIF if channels == 1 else _AVIF,), _avif_own),
    }
    codecs[name].check()
    return codecs[name]


def psnr(decoded: np.ndarray, images: np.ndarray) -> float | None:
    """The peak signal-to-noise ratio of 8-bit images in dB, by their mean square error; None if all are equal."""
    pairs = zip(decoded, images, strict=True)  # one by one: as float32 they would take four times the memory
    error = np.mean([np.square(one.astype(np.float32) - other).mean(dtype=np.float64) for one, other in pairs])
    return None if error == 0 else float(10 * np.log10(255**2 / error))


def decode_all(codec: Codec, files: Sequence[File], channels: int) -> np.ndarray:
    """The images in the files, uint8 `[N, ch, H, W]`."""
    return np.stack([codec.decode(file, channels) for file in files])
