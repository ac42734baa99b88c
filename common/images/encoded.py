"""Turns one encoded image, a file or bytes from a table, into a uint8 array."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from common.images.pixels import Decoding, Resize
from common.schemas.door import LARGEST_SIDE
from common.system.errors import InputError
from common.system.text import counted

FORMAT = 2  # the version of the decoded images: increase it when the same files decode to other pixels

GRAY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F")  # 16-bit and floating-point modes, which Pillow would silently clip to 8 bits
# The transposition that shows an image of this EXIF orientation upright. Not by ImageOps.exif_transpose, which also
# writes the whole EXIF block again, and fails where any part of it is malformed.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
# Pillow makes all of these 8-bit, but not the one colour that a PNG declares to be transparent: how it becomes 8-bit.
_TRANSPARENT_COLOURS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda level: level * 85,
    "L;4": lambda level: level * 17,
    "RGB;16B": lambda colour: tuple(each >> 8 for each in colour),
}
# What is told about images, by kind and decoding, in this order.
_REMARKS = {
    "turned": {
        "shown": "turned as the EXIF orientation says",
        "stored": "not turned as the EXIF orientation says",
    },
    "transparent": {
        "shown": "laid over white because of transparent pixels",
        "stored": "read without regard to transparent pixels",
    },
    "deep": dict.fromkeys(("shown", "stored"), "reduced from 16 to 8 bits per channel"),
    "frames": dict.fromkeys(("shown", "stored"), "read as the first of several frames"),
}

Size = tuple[int, int]  # width, height


class Encoded(NamedTuple):
    """The content of an image file, and the name that messages use for it."""

    content: bytes
    name: str


Source = str | Encoded  # the path of an image file, or content that has already been read


class Unreadable(InputError):
    """An image file is truncated, damaged, or not an image."""


class Picture(NamedTuple):
    """One decoded image."""

    pixels: np.ndarray  # uint8 [ch, H, W], ch = 1 if the image is grayscale
    size: Size  # before resizing
    remarks: tuple[str, ...]  # keys of _REMARKS: what of the file the pixels do not show, or show otherwise


# What Pillow's readers raise for broken files. OSError also covers files that are not images.
_MOST_PIXELS = 1 << 28  # of an image that has been scaled
_UNREADABLE = (OSError, SyntaxError, EOFError, LookupError, ValueError, TypeError, OverflowError, struct.error)


def read_image(source: Source, resize: Resize | None, decoding: Decoding) -> Picture:
    """Decode one image to uint8 `[ch, H, W]`, where ch is 1 for a grayscale image and 3 otherwise.

    Raises `Unreadable`, which names the source, if the source is truncated or not an image, and `InputError` if it is
    a grayscale image of more than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, str) else io.BytesIO(source.content)) as stored:
            if stored.mode.startswith(DEEP_MODES):
                raise InputError(f"{name_of(source)} has more than 8 bits per channel: convert it, or remove it")
            _check_size(stored.size, name_of(source), resize)
            image, remarks = _interpreted(stored, decoding)
    except InputError:
        raise
    except (*_UNREADABLE, MemoryError, Image.DecompressionBombError) as error:
        raise Unreadable(
            f"{name_of(source)} cannot be read as an image ({error}): replace it, remove it, or give --skip_corrupt"
        ) from error
    return Picture(_pixels(image) if resize is None else resized(image, resize), image.size, remarks)


def _check_size(size: Size, name: str, resize: Resize | None) -> None:
    """Raise `Unreadable` for an image whose pixels would fill the memory: before they are read, by its header."""
    sides = f"{name} is {size[0]:,} x {size[1]:,} pixels"
    if resize is None and max(size) > LARGEST_SIDE:
        raise Unreadable(f"{sides}, and at most {LARGEST_SIDE:,} each way are taken as they are: give --image_size")
    if resize is not None and math.prod(_scaled(size, resize)) > _MOST_PIXELS:
        raise Unreadable(
            f"{sides}, too long and thin to be scaled until its shorter side is {resize.side}: crop it, remove it, or "
            "give --resize squash or --skip_corrupt"
        )


def _interpreted(stored: Any, decoding: Decoding) -> tuple[Any, tuple[str, ...]]:
    """An opened Pillow image as a gray or an RGB one, and what there is to remark about it."""
    from PIL import Image

    # What the file says of its pixels, which Pillow forgets when it has read them.
    mode = "L" if stored.mode in GRAY_MODES else "RGB"
    layouts = [tile[3] for tile in stored.tile]  # such as "RGB;16B" or a tuple of that and more; of PPM ("RGB", 65535)
    found = {"deep": any(map(_is_deep, layouts)), "frames": _has_frames(stored)}
    as_8_bits = next((_TRANSPARENT_COLOURS.get(str(each)) for each in layouts), None)
    stored.load()
    image = stored
    if stored.has_transparency_data:
        if as_8_bits is not None and "transparency" in stored.info:
            stored.info["transparency"] = as_8_bits(stored.info["transparency"])
        image = stored.convert("RGBA")
        found["transparent"] = image.getchannel("A").getextrema()[0] < 255
        if found["transparent"] and decoding == "shown":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    upright = _UPRIGHT.get(_orientation(stored))
    found["turned"] = upright is not None
    if upright is not None and decoding == "shown":
        image = image.transpose(Image.Transpose[upright])
    return image, tuple(kind for kind in _REMARKS if found.get(kind))


def _is_deep(layout: Any) -> bool:
    """Whether a layout of pixels in a file is one of 16 bits per channel, of which Pillow keeps 8."""
    if isinstance(layout, tuple) and len(layout) == 2:  # of PPM, whose second number is the largest value
        return isinstance(layout[1], int) and layout[1] > 255
    return ";16" in str(layout)


def _has_frames(stored: Any) -> bool:
    """Whether an image is the first of several: an animation, or pages."""
    # Cameras put a preview or a depth map behind the picture of a JPEG, which is then MPO.
    return getattr(stored, "is_animated", False) and stored.format != "MPO"


def _orientation(stored: Any) -> Any:
    """The EXIF orientation, 1 for an upright image."""
    from PIL import ExifTags

    try:
        return stored.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:  # the image itself has been read: viewers show it as it is stored, too
        return 1


def size_shown(path: str, decoding: Decoding) -> Size | None:
    """Width and height of an image file by its header alone, as `read_image` would have it; None if it has none."""
    from PIL import Image

    try:
        with Image.open(path) as stored:
            # The reader of PNG looks for an orientation behind all pixels, which it would decode.
            looked = decoding == "shown" and (stored.format != "PNG" or "exif" in stored.info)
            turned = looked and _orientation(stored) in (5, 6, 7, 8)
            return (stored.height, stored.width) if turned else stored.size
    except (*_UNREADABLE, MemoryError, Image.DecompressionBombError):
        return None


def describe_remarks(remarks: Mapping[str, int], images: int, name: str, decoding: Decoding) -> str:
    """One line that says how many of `images` are shown otherwise than they are stored, or not completely; "" if none.

    name: what the images are of.
    """
    counts = [
        f"{count} {'is' if count == 1 else 'are'} {told[decoding]}"
        for kind, told in _REMARKS.items()
        if (count := remarks.get(kind, 0))
    ]
    if not counts:
        return ""
    other = ""
    if remarks.get("turned") or remarks.get("transparent"):
        otherwise = "stored ignores" if decoding == "shown" else "shown follows"
        other = f" (--decoding {otherwise} orientation and transparency)"
    return f"of the {images} images of {name}, {', '.join(counts)}{other}"


def transparency(remarks: Mapping[str, int], decoding: Decoding) -> str:
    """The end of a sentence on images that are all alike: how transparency may be the cause; "" if no image has any.

    remarks: how many images each remark is about.
    """
    if not (count := remarks.get("transparent", 0)):
        return ""
    told = f"{counted(count, 'image')} of the dataset {'has' if count == 1 else 'have'} transparent pixels"
    if decoding == "stored":
        return f", or, as {told}, which may be all that they show, give --decoding shown"
    return f"; {told}, which were laid over white, on which white is not seen"


def resized(image: Any, resize: Resize) -> np.ndarray:
    """Resize a grayscale or RGB Pillow image to a square, uint8 `[ch, side, side]`, with torchvision's arithmetic.

    "crop" scales the shorter side to `side` and takes the centre square; "squash" scales both sides to `side`. Both
    enlarge smaller images. The interpolation is bilinear. With antialiasing, it is Pillow's. Without, it is what
    torchvision 0.12 did with the tensors in the authors' code, except that this result is rounded to 8 bits.
    """
    from PIL import Image

    side, scaled = resize.side, _scaled(image.size, resize)
    if resize.antialias and scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    pixels = _pixels(image)
    if not resize.antialias:
        pixels = _interpolated(pixels, *scaled)
    left, top = (round((length - side) / 2) for length in scaled)
    return np.ascontiguousarray(pixels[:, top : top + side, left : left + side])


def _scaled(size: Size, resize: Resize) -> Size:
    """The size (width, height) that an image is scaled to, before its centre is cut out."""
    side, (width, height) = resize.side, size
    if resize.mode == "squash":
        return side, side
    if width <= height:
        return side, side * height // width
    return side * width // height, side


def _interpolated(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Interpolate uint8 `[ch, H, W]` to uint8 `[ch, height, width]`: bilinear without antialiasing.

    Pixels are squares whose values lie at their centres.
    """
    # In numpy, because every call of torch would start more threads in each of the decoding threads.
    rows = _between(pixels.astype(np.float32), 1, height)
    return np.rint(_between(rows, 2, width)).astype(np.uint8)


def _between(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Interpolate linearly along an axis, at the centres of `length` equal parts; the end values extend outwards."""
    old = values.shape[axis]
    if old == length:
        return values
    at = ((np.arange(length, dtype=np.float32) + 0.5) * np.float32(old / length) - 0.5).clip(0)
    below = np.minimum(at.astype(np.int64), old - 1)
    above = np.minimum(below + 1, old - 1)
    share = (at - below).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1 - axis))
    return values.take(below, axis) * (1 - share) + values.take(above, axis) * share


def _pixels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def name_of(source: Source) -> str:
    """The name that messages use for an image: its path, or the name of its `Encoded` content."""
    return source if isinstance(source, str) else source.name
