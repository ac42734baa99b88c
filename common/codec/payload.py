"""The bytes of a set: everything that a decoder needs, and nothing else (docs/format.md, byte by byte).

bf16, int8   k kept coefficients of each image; positions per class, shared by the channels or over all ch * d
coded        codes and means of all P coefficients, entropy-coded, with a step per class
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from common.codec import side
from common.codec.planes import COLOURS, Planes
from common.codec.positions import positions_bytes, read_positions
from common.codec.quantise import mean_shift, values_of
from common.system.errors import InputError

Kind = Literal["bf16", "int8", "coded"]
KINDS: tuple[str, ...] = get_args(Kind)
VERSION = 1
_HEAD = struct.Struct("<BBBBBBHI")  # version, kind, colour, block, number of sides, channels, classes, images per class
_DENSEST = 1024
"""The largest number of coefficients that one byte may stand for, so that a small file cannot fill the memory."""
_MOST = 1 << 31  # coefficients of a set that is decoded, 8 GiB as float32
_PART = 1 << 22  # coefficients that are computed at a time
_LARGEST_SIDE = 2048  # the bases of a DCT are a matrix of its square


class TooDenseError(InputError):
    """A payload of `length` bytes would stand for more coefficients than a reader believes."""

    def __init__(self, planes: Planes, classes: int, count: int, length: int) -> None:
        self.length = length
        super().__init__(
            f"{classes * count:,} images of {planes.size:,} coefficients in {length:,} bytes are more than "
            f"{_DENSEST:,} for each byte: give {'a smaller --n or ' if count > 1 else ''}more bits"
        )


@dataclass(frozen=True)
class Contents:
    """What a payload says, on the CPU: C classes of n images in the layout `planes`.

    bf16: `values` bfloat16 [C, n, K] at `positions` int64 [C, K]. int8: `values` int8 [C, n, K], with `scales` bfloat16
    [C, K]. coded: `values` int16 [C, n, P] with `means` int16 [C, P] and `steps` float32 [C]; all P positions.
    joint: whether the positions of a class are chosen over all P; otherwise they are those of a channel, for each.
    """

    kind: str
    planes: Planes
    values: Tensor
    positions: Tensor | None = None
    joint: bool = True
    scales: Tensor | None = None
    means: Tensor | None = None
    steps: Tensor | None = None

    @property
    def coefficients(self) -> Tensor:
        """The stored coefficients float32 [C, n, K], or [C, n, P] if they are coded, in orthonormal units."""
        found = torch.empty(self.values.shape, dtype=torch.float32, device="cpu")
        first = 0
        for part in self.parts():
            found.view(-1)[first : first + part.numel()] = part.flatten()
            first += part.numel()
        return found

    def parts(self) -> Iterator[Tensor]:
        """The coefficients in order, float32 [1, m, K], a few images at a time: a whole set needs several copies."""
        rows = max(1, _PART // self.values.shape[2])
        for c, images in enumerate(self.values):
            for values in images.split(rows):
                if self.kind == "bf16":
                    yield values.float()[None]
                elif self.kind == "int8":
                    assert self.scales is not None
                    yield (values.float() * self.scales[c].float())[None]
                else:
                    assert self.means is not None
                    assert self.steps is not None
                    shift = mean_shift(self.values.shape[1])
                    yield values_of(self.means[c : c + 1], values[None], self.steps[c : c + 1], shift)


def encode(contents: Contents) -> tuple[bytes, dict[str, int]]:
    """The payload, and its bytes by what they say. Raises TooDenseError if it stands for more than may be decoded."""
    planes, values = contents.planes, contents.values
    classes, count = values.shape[:2]
    head = _HEAD.pack(
        VERSION, KINDS.index(contents.kind), COLOURS.index(planes.colour), planes.block, len(planes.im_size),
        planes.channels, classes, count,
    ) + struct.pack(f"<{len(planes.im_size)}H", *planes.im_size)  # fmt: skip
    if contents.kind == "coded":
        assert contents.means is not None
        assert contents.steps is not None
        words, bits = side.write(side.Stream(values.numpy(), contents.means.numpy()), planes.scan.numpy())
        parts = {
            "head": head,
            "steps": contents.steps.numpy().astype("<f4").tobytes(),
            "coded": words.astype("<u4").tobytes(),
        }
        told = {f"{name}_bits": number for name, number in bits._asdict().items()}
    else:
        assert contents.positions is not None
        where = contents.positions if contents.joint else contents.positions[:, : values.shape[2] // planes.channels]
        limit = planes.size if contents.joint else planes.d
        parts = {"head": head, "positions": positions_bytes(where.numpy(), contents.joint, limit)}
        if contents.scales is not None:
            parts["scales"] = _bytes_of(contents.scales.view(torch.int16))
        parts["values"] = _bytes_of(values if contents.kind == "int8" else values.view(torch.int16))
        told = {}
    payload = b"".join(parts.values())
    if classes * count * planes.size > _DENSEST * len(payload):
        raise TooDenseError(planes, classes, count, len(payload))
    return payload, {name: len(part) for name, part in parts.items()} | told


def decode(payload: bytes) -> Contents:
    """What a payload says. Raises InputError for bytes that `encode` did not write; their memory is bounded."""
    kind, planes, classes, count, rest = read_head(payload)
    if classes * count * planes.size > _DENSEST * len(payload):
        raise _damaged(f"it is to stand for more than {_DENSEST:,} coefficients for each byte")
    if classes * count * planes.size > _MOST:
        raise InputError(f"the payload stands for more than {_MOST:,} coefficients: make a set of fewer images")
    if kind == "coded":
        if len(rest) < 4 * classes or len(rest) % 4:
            raise _damaged("its length does not fit its shapes")
        steps = np.frombuffer(rest[: 4 * classes], dtype="<f4").astype(np.float32)
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            raise _damaged("a step is not a positive number")
        words = np.frombuffer(rest[4 * classes :], dtype="<u4").astype(np.uint32)
        stream = side.read(words, (classes, count, planes.size), planes.scan.numpy())
        return _finite(Contents(
            kind, planes, torch.from_numpy(stream.codes), means=torch.from_numpy(stream.means),
            steps=torch.from_numpy(steps),
        ))  # fmt: skip
    where, joint, rest = read_positions(rest, classes, planes)
    kept = where.shape[1] * (1 if joint else planes.channels)
    width = 2 if kind == "bf16" else 1
    scales_bytes = 2 * classes * kept if kind == "int8" else 0
    if len(rest) != scales_bytes + width * classes * count * kept:
        raise _damaged("its length does not fit its shapes")
    values = _numbers(rest[scales_bytes:], "<i2" if width == 2 else "<i1", (classes, count, kept))
    scales = _numbers(rest[:scales_bytes], "<i2", (classes, kept)).view(torch.bfloat16) if scales_bytes else None
    return _finite(Contents(
        kind, planes, values.view(torch.bfloat16) if width == 2 else values,
        torch.from_numpy(where) if joint else over_channels(torch.from_numpy(where), planes), joint, scales,
    ))  # fmt: skip


def _finite(contents: Contents) -> Contents:
    if not all(part.isfinite().all() for part in contents.parts()):
        raise _damaged("a coefficient is not finite")
    return contents


def over_channels(positions: Tensor, planes: Planes) -> Tensor:
    """Positions [C, k] of a channel, for each of the channels: [C, ch * k], of all P coefficients."""
    shift = torch.arange(planes.channels, device=positions.device) * planes.d
    return (positions.long()[:, None] + shift[:, None]).flatten(1)


def most_images(kind: str, planes: Planes, classes: int, kept: int, joint: bool, allowed: int) -> int:
    """How many images per class of K = `kept` coefficients surely fit into `allowed` bytes in all, as bf16 or int8."""
    limit = planes.size if joint else planes.d
    fixed = _HEAD.size + 2 * len(planes.im_size) + len(positions_bytes(None, joint, limit, classes))
    fixed += 2 * classes * kept if kind == "int8" else 0
    return max(0, (allowed - fixed) // (classes * kept * (2 if kind == "bf16" else 1)))


def read_head(payload: bytes) -> tuple[str, Planes, int, int, bytes]:
    """(kind, planes, classes, images per class, the bytes after the head). Raises InputError for the head of no set."""
    if len(payload) < _HEAD.size:
        raise _damaged("it ends within its head")
    version, kind, colour, block, sides, channels, classes, count = _HEAD.unpack_from(payload)
    if version != VERSION:
        raise InputError(f"the payload has version {version}, this code reads version {VERSION}: update it")
    rest = payload[_HEAD.size + 2 * sides :]
    if kind >= len(KINDS) or colour >= len(COLOURS) or sides not in (2, 3):
        raise _damaged("its head is not that of a set")
    if len(payload) < _HEAD.size + 2 * sides:
        raise _damaged("it ends within its head")
    im_size = struct.unpack_from(f"<{sides}H", payload, _HEAD.size)
    if 0 in (*im_size, channels, classes, count) or max(im_size) > _LARGEST_SIDE:
        raise _damaged("its head is not that of a set")
    return KINDS[kind], Planes(channels, im_size, COLOURS[colour], block), classes, count, rest


def _damaged(reason: str) -> InputError:
    return InputError(f"the payload is damaged ({reason}): copy the file again")


def _bytes_of(values: Tensor) -> bytes:
    array = values.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _numbers(data: bytes, kind: str, shape: tuple[int, ...]) -> Tensor:
    array = np.frombuffer(data, dtype=kind).astype(np.dtype(kind).newbyteorder("=")).reshape(shape)
    return torch.from_numpy(array)
