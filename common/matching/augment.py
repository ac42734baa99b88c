"""DSA, differentiable Siamese augmentation (Zhao and Bilen, 2021), for all classes in one call and without global RNG.

`sample` draws a parameter set for each group of images, and `apply` augments the images with it. There are two modes:
- Siamese (distillation): each class is a group. The same DSAParams augments the real and the synthetic images of a
  class in the same way, although their numbers differ.
- per image (training on a set): each image is a group, and `one_strategy=True` draws one strategy for the whole batch.

The strategies follow the authors' utils.py (DiffAugment, ParamDiffAug), with u uniform in [0, 1):
    color   x + (u - 0.5), then (x - m) * 2u + m with m the mean over channels, then (x - m) * (u + 0.5) + m with m the
            mean of the image
    crop    shift each axis by an integer in [-s, s], s = int(0.125 * side + 0.5); fill with zeros
    cutout  set a square of side int(0.5 * side + 0.5) to zero; its centre is uniform over the image's rows and columns
    flip    flip left to right with probability 1/2; pixels change places, while the authors resample the image by a map
            to the same positions, which rounds
    scale   scale each axis by a factor in [1/1.2, 1.2], where factors above 1 shrink; bilinear, zeros outside
    rotate  rotate by an angle in [-15, 15] degrees; bilinear, zeros outside
Exactly one of the strategies is applied to each group. The authors resample with align_corners=False in DC and DM and
with True elsewhere. For maps about the centre both settings sample the same positions, so they differ by rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from common.system.devices import all_to_device
from common.system.errors import InputError

STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate")

_GEOMETRIC = ("crop", "scale", "rotate")  # strategies that resample the image by an affine map
_STAGES = ("theta", "moved", "flipped", "color", "colored", "cutout", "uncut")  # the tensors of DSAParams
_CROP_RATIO = 0.125
_CUTOUT_RATIO = 0.5
_SCALE_RATIO = 1.2
_ROTATE_DEGREES = 15.0


@dataclass(frozen=True, eq=False)
class DSAParams:
    """One drawn augmentation for each of G groups of images.

    The tensors of a stage (resampling, flip, colour, cutout) are None if no group uses that stage. It is known without
    reading the tensors, so `apply` never waits for a device.
    `params[a:b]` are the parameters of groups a to b-1. They augment the images of these groups as `params` does.
    """

    strategies: tuple[str, ...]  # one name per group; "none" leaves the images unchanged
    im_size: tuple[int, ...]
    align_corners: bool
    theta: torch.Tensor | None = None  # [G, 2, 3] affine map from output to input in normalised coordinates (x, y)
    moved: torch.Tensor | None = None  # [G] bool: whether theta differs from the identity
    flipped: torch.Tensor | None = None  # [G] bool: whether the images are flipped left to right
    color: torch.Tensor | None = None  # [G, 3] brightness shift, saturation factor, contrast factor
    colored: torch.Tensor | None = None  # [G] bool: whether color changes the images
    cutout: torch.Tensor | None = None  # [G, 2] int64 top and left of the square, which lies outside for no cutout
    uncut: torch.Tensor | None = None  # [G, H + W] bool: the rows and the columns that the square does not touch

    @property
    def groups(self) -> int:
        """G, the number of groups of images; the images of a group share one set of parameters."""
        return len(self.strategies)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DSAParams:
        """Return the same parameters on another device, or in another floating-point type."""

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

        params = self._map(cast, self.strategies)
        there = None if device is None else torch.device(device)
        given = {name: getattr(params, name) for name in _STAGES if getattr(params, name) is not None}
        if there is None or not given:
            return params
        if any(each.device.type != "cpu" for each in given.values()):
            return params._map(lambda tensor: tensor.to(there), self.strategies)
        moved = all_to_device(list(given.values()), there)  # in one copy, which the CPU does not wait for
        on_device: dict[str, Any] = dict(zip(given, moved, strict=True))
        return replace(params, **on_device)

    def __getitem__(self, groups: slice) -> DSAParams:
        if not isinstance(groups, slice):
            raise TypeError("DSAParams is sliced by a range of groups, params[a:b].")
        return self._map(lambda tensor: tensor[groups], self.strategies[groups])

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor], strategies: tuple[str, ...]) -> DSAParams:
        """Apply `change` to the tensors of the stages that `strategies` use; the other stages become None."""

        def stage(tensor: torch.Tensor | None, *users: str) -> torch.Tensor | None:
            return None if tensor is None or set(users).isdisjoint(strategies) else change(tensor)

        return DSAParams(
            strategies,
            self.im_size,
            self.align_corners,
            theta=stage(self.theta, *_GEOMETRIC),
            moved=stage(self.moved, *_GEOMETRIC),
            flipped=stage(self.flipped, "flip"),
            color=stage(self.color, "color"),
            colored=stage(self.colored, "color"),
            cutout=stage(self.cutout, "cutout"),
            uncut=stage(self.uncut, "cutout"),
        )


def parse_strategy(text: str, known: Sequence[str] = STRATEGIES, kind: str = "a DSA strategy") -> tuple[str, ...]:
    """Return the names in e.g. "color_crop_cutout_flip_scale_rotate"; () for "" and "none".

    A name given twice is drawn twice as often.
    Raises InputError for a name that is not in `known`; the message calls the names `kind`.
    """
    if text.strip().lower() in ("", "none"):
        return ()
    names = tuple(name.strip().lower() for name in text.split("_"))
    for name in names:
        if name not in known:
            raise InputError(
                f"'{name}' in '{text}' is not {kind}: join some of {', '.join(known)} by '_', or say none."
            )
    return names


def sample(
    strategy: str,
    groups: int,
    generator: torch.Generator,
    im_size: Sequence[int],
    *,
    one_strategy: bool = False,
    align_corners: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> DSAParams:
    """Draw an augmentation for each of `groups` groups of images [.., ch, *im_size] from a CPU generator.

    Each group draws one of the strategies uniformly. With `one_strategy` all groups share one strategy, but each group
    has its own parameters. The draws and their number do not depend on the device, the dtype or the drawn strategies.
    `align_corners` is passed to affine_grid and grid_sample and changes the images by rounding only (see the module).
    Raises InputError for an unknown strategy, and for images that are not two-dimensional unless `strategy` is none.
    """
    if groups < 1:
        raise ValueError(f"There is nothing to draw for {groups} groups.")
    names = parse_strategy(strategy)
    size = tuple(im_size)
    if not names:
        return DSAParams(("none",) * groups, size, align_corners)
    if len(size) != 2:
        raise InputError(f"DSA augments two-dimensional images, not images of size {size}: use no strategy here.")
    align_corners = align_corners and min(size) > 1  # a single pixel has no corners to align
    chosen = torch.randint(len(names), (1 if one_strategy else groups,), generator=generator).expand(groups).tolist()
    u = torch.rand(groups, 3, generator=generator, dtype=torch.float64)
    strategies = tuple(names[i] for i in chosen)
    rows = {name: torch.tensor([drawn == name for drawn in strategies]) for name in set(strategies)}

    theta = torch.eye(2, 3, dtype=torch.float64).repeat(groups, 1, 1)
    for name in _GEOMETRIC:
        if name in rows:
            theta[rows[name]] = _affine(name, u[rows[name]], size, align_corners)
    neutral = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    colored = rows.get("color", torch.zeros(groups, dtype=torch.bool))
    color = torch.where(colored[:, None], torch.stack((u[:, 0] - 0.5, 2 * u[:, 1], u[:, 2] + 0.5), dim=1), neutral)
    cutout = torch.tensor(size).repeat(groups, 1)
    if "cutout" in rows:
        cut = _cutout_sides(size)
        centres = torch.tensor([side + 1 - c % 2 for side, c in zip(size, cut, strict=True)])
        corner = (u[:, :2] * centres).floor().long() - torch.tensor([c // 2 for c in cut])
        cutout = torch.where(rows["cutout"][:, None], corner, cutout)
    moved = (theta != torch.eye(2, 3, dtype=torch.float64)).flatten(1).any(dim=1)
    flipped = rows.get("flip", torch.zeros(groups, dtype=torch.bool)) & (u[:, 0] < 0.5)
    uncut = _uncut(cutout, size)
    drawn = DSAParams(strategies, size, align_corners, theta, moved, flipped, color, colored, cutout, uncut)
    return drawn.to(device, dtype)


def join(parts: Sequence[DSAParams]) -> DSAParams:
    """Concatenate the groups of all parts; applied to the concatenated images, they augment each as its part does.

    Raises ValueError if the parts were drawn for images of different sizes or differ in align_corners.
    """
    sizes = {(part.im_size, part.align_corners) for part in parts}
    if len(sizes) != 1:
        raise ValueError(f"parameters for different images cannot be joined: {sorted(sizes)}")
    ((size, align_corners),) = sizes
    neutral = {
        "theta": torch.eye(2, 3, dtype=torch.float64),
        "moved": torch.tensor(False),
        "flipped": torch.tensor(False),
        "color": torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64),
        "colored": torch.tensor(False),
        "cutout": torch.tensor(size),
        "uncut": torch.tensor(True),
    }

    def stage(name: str) -> torch.Tensor | None:
        given = [getattr(part, name) for part in parts]
        model = next((tensor for tensor in given if tensor is not None), None)
        if model is None:
            return None
        rest = neutral[name].to(model)
        return torch.cat([
            rest.expand(part.groups, *model.shape[1:]) if tensor is None else tensor
            for part, tensor in zip(parts, given, strict=True)
        ])  # fmt: skip

    strategies = tuple(name for part in parts for name in part.strategies)
    return DSAParams(strategies, size, align_corners, **{name: stage(name) for name in neutral})


def apply(images: torch.Tensor, params: DSAParams) -> torch.Tensor:
    """Augment images [B, ch, H, W] with B = G * m, ordered by group; shape, dtype and device stay the same.

    The result is differentiable with respect to the images (twice, if torch's grid_sample is). A stage leaves the
    groups that do not use it unchanged bit for bit. With no strategy, images of any shape are returned unchanged.
    Raises ValueError for images that the parameters were not drawn for, and for types other than float32 and float64.
    In half precision the sampling positions would be off by a tenth of a pixel; autocast is disabled for that reason.
    """
    if params.groups < 1 or images.shape[0] % params.groups:
        raise ValueError(f"{images.shape[0]} images do not divide into {params.groups} groups.")
    if set(params.strategies) == {"none"}:
        return images
    if images.ndim != 4 or tuple(images.shape[2:]) != params.im_size:
        raise ValueError(f"DSA for images [B, ch, *{params.im_size}] was given images {list(images.shape)}.")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"DSA works in float32 and float64, not in {images.dtype}.")
    params = params.to(images.device, images.dtype)
    x = images.unflatten(0, (params.groups, images.shape[0] // params.groups))  # [G, m, ch, H, W]
    with torch.autocast(images.device.type, enabled=False):
        if params.color is not None and params.colored is not None:
            recolored = _recolor(x, params.color)
            every = set(params.strategies) == {"color"}
            x = recolored if every else torch.where(_spread(params.colored), recolored, x)
        if params.theta is not None and params.moved is not None:
            x = torch.where(_spread(params.moved), _resample(x, params.theta, params.align_corners), x)
        if params.flipped is not None:
            x = torch.where(_spread(params.flipped), x.flip(-1), x)
        if params.uncut is not None:
            rows, columns = params.uncut.split(params.im_size, dim=1)  # [G, H] and [G, W]
            x = x * (rows[:, None, None, :, None] | columns[:, None, None, None, :])
    return x.flatten(0, 1)


def _affine(name: str, u: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Turn uniform numbers [K, 3] into affine maps [K, 2, 3] from output to input coordinates (x, y) in [-1, 1]."""
    height, width = size
    theta = torch.eye(2, 3, dtype=torch.float64).repeat(len(u), 1, 1)
    across, down = (width - 1, height - 1) if align_corners else (width, height)  # pixels from -1 to 1
    if name == "crop":
        for axis, (side, length) in enumerate(((width, across), (height, down))):
            most = int(_CROP_RATIO * side + 0.5)
            theta[:, axis, 2] = ((u[:, axis] * (2 * most + 1)).floor() - most) * 2 / length
    elif name == "scale":
        theta[:, 0, 0], theta[:, 1, 1] = (u[:, :2] * (_SCALE_RATIO - 1 / _SCALE_RATIO) + 1 / _SCALE_RATIO).unbind(1)
    elif name == "rotate":
        angle = (2 * u[:, 0] - 1) * math.radians(_ROTATE_DEGREES)
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
        # In the coordinates [-1, 1] x [-1, 1], the pixels of an image that is not square are not square either. The
        # ratio of the sides corrects this; without it the image would be sheared.
        theta[:, 0, 1] = -angle.sin() * down / across
        theta[:, 1, 0] = angle.sin() * across / down
    return theta


def _recolor(x: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    """Change the brightness, saturation and contrast, in this order, of x [G, m, ch, H, W]."""
    brightness, saturation, contrast = _spread(color).unbind(1)
    at_once = x.device.type != "cpu"
    x = x + brightness
    # The mean of a single channel is that channel, so saturation does not change it.
    x = stretch(x, x.mean(dim=2, keepdim=True), saturation, at_once)
    return stretch(x, x.mean(dim=(2, 3, 4), keepdim=True), contrast, at_once)


def stretch(x: torch.Tensor, middle: torch.Tensor, factor: torch.Tensor, at_once: bool) -> torch.Tensor:
    """Return (x - middle) * factor + middle. at_once: in one operation, not three, which rounds otherwise."""
    return torch.lerp(middle, x, factor) if at_once else (x - middle).mul_(factor).add_(middle)


def _resample(x: torch.Tensor, theta: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """Sample x [G, m, ch, H, W] bilinearly at the positions to which theta [G, 2, 3] maps the pixels; zero outside."""
    groups, each, channels, height, width = x.shape
    grid = F.affine_grid(theta, [groups, channels, height, width], align_corners=align_corners)  # [G, H, W, 2]
    # The grid is computed once per group and repeated, which is several times as fast as one grid per image.
    grid = grid.unsqueeze(1).expand(groups, each, height, width, 2).flatten(0, 1)
    moved = F.grid_sample(x.flatten(0, 1), grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
    return moved.unflatten(0, (groups, each))


def _uncut(cutout: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return a bool [G, H + W], False for the rows and columns of each group's square, which may go over the edge."""
    touched = []
    for axis, (side, cut) in enumerate(zip(size, _cutout_sides(size), strict=True)):
        offset = torch.arange(side) - cutout[:, axis, None]
        touched.append((offset >= 0) & (offset < cut))  # [G, side]
    return ~torch.cat(touched, dim=1)


def _cutout_sides(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(_CUTOUT_RATIO * side + 0.5) for side in size)


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Append four axes of length 1, so that the values broadcast against [G, m, ch, H, W]."""
    return values[..., None, None, None, None]
