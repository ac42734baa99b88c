"""DSA, differentiable Siamese augmentation (Zhao and Bilen, 2021), for all classes in one call and without global RNG.

`sample` draws a parameter set for each group of images, `apply` augments images with it. What a group is decides the
mode:
- Siamese (distillation): groups are classes. The same DSAParams augments the real and the synthetic images, so both
  see the same function even though a class has more of one than of the other.
- per image (training on a set): groups are images, and `one_strategy=True` draws one strategy for the whole batch.

Facts from the authors' utils.py (DiffAugment, ParamDiffAug), u uniform in [0, 1):
    color   x + (u - 0.5), then (x - m) * 2u + m with m the mean over channels, then (x - m) * (u + 0.5) + m with m the
            mean of the image
    crop    each axis shifted by an integer in [-s, s], s = int(0.125 * side + 0.5); zeros come in
    cutout  a square of side int(0.5 * side + 0.5) set to zero; its centre is uniform over the image's rows and columns
    flip    left to right with probability 1/2
    scale   each axis by a factor in [1/1.2, 1.2], above 1 shrinks; bilinear, zeros outside
    rotate  by an angle in [-15, 15] degrees; bilinear, zeros outside
Exactly one of the strategies is applied to each group. The authors resample with align_corners=False in DC and DM and
with True elsewhere. For maps about the centre both sample the same positions, so here the two differ by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common.system.errors import InputError

STRATEGIES = ("color", "crop", "cutout", "flip", "scale", "rotate")

_GEOMETRIC = ("crop", "flip", "scale", "rotate")  # those that are one resampling of the image
_CROP_RATIO = 0.125
_CUTOUT_RATIO = 0.5
_SCALE_RATIO = 1.2
_ROTATE_DEGREES = 15.0


@dataclass(frozen=True, eq=False)
class DSAParams:
    """One drawn augmentation for each of G groups of images.

    A stage's tensors are None when no group uses it: the host knows that, so `apply` never waits for a device.
    `params[a:b]` are the parameters of groups a to b-1; applied to the images of those groups they give what the whole
    set gives there.
    """

    strategies: tuple[str, ...]  # of each group; "none" is the identity
    im_size: tuple[int, ...]
    align_corners: bool
    theta: torch.Tensor | None = None  # [G, 2, 3] affine map from output to input in normalised coordinates (x, y)
    moved: torch.Tensor | None = None  # [G] bool: theta is not the identity
    color: torch.Tensor | None = None  # [G, 3] brightness shift, saturation factor, contrast factor
    colored: torch.Tensor | None = None  # [G] bool: color is not neutral
    cutout: torch.Tensor | None = None  # [G, 2] int64 top and left of the square; beyond the image where there is none

    @property
    def groups(self) -> int:
        """G, the number of groups."""
        return len(self.strategies)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DSAParams:
        """The same parameters on another device, or in another floating-point type."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            precision = dtype if tensor.is_floating_point() else None
            return tensor.to(device=device, dtype=precision, non_blocking=True)

        return self._map(move, self.strategies)

    def __getitem__(self, groups: slice) -> DSAParams:
        if not isinstance(groups, slice):
            raise TypeError("DSAParams is sliced by a range of groups, params[a:b].")
        return self._map(lambda tensor: tensor[groups], self.strategies[groups])

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor], strategies: tuple[str, ...]) -> DSAParams:
        """`change` on the tensors of the stages that `strategies` use, None for the other stages."""

        def stage(tensor: torch.Tensor | None, *users: str) -> torch.Tensor | None:
            return None if tensor is None or set(users).isdisjoint(strategies) else change(tensor)

        return DSAParams(
            strategies,
            self.im_size,
            self.align_corners,
            theta=stage(self.theta, *_GEOMETRIC),
            moved=stage(self.moved, *_GEOMETRIC),
            color=stage(self.color, "color"),
            colored=stage(self.colored, "color"),
            cutout=stage(self.cutout, "cutout"),
        )


def parse_strategy(text: str, known: Sequence[str] = STRATEGIES, kind: str = "a DSA strategy") -> tuple[str, ...]:
    """The names in e.g. "color_crop_cutout_flip_scale_rotate"; () for "" and "none". A name given twice counts twice.

    Raises InputError for a name that is not one of `known`, of which each is `kind`.
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

    Each group draws one of the strategies uniformly, or with `one_strategy` all groups have the same one with their own
    parameters. The draws depend on neither device nor dtype, and every call takes the same number of them.
    `align_corners` is that of affine_grid and grid_sample; the images are the same but for rounding (see above).
    Raises InputError for an unknown strategy and for images that are not two-dimensional (no strategy takes any size).
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
    return DSAParams(strategies, size, align_corners, theta, moved, color, colored, cutout).to(device, dtype)


def join(parts: Sequence[DSAParams]) -> DSAParams:
    """The groups of all parts, one after another: applied to their images side by side it gives what each part gives.

    Raises ValueError for parts that were drawn for images of different sizes, or differ in align_corners.
    """
    sizes = {(part.im_size, part.align_corners) for part in parts}
    if len(sizes) != 1:
        raise ValueError(f"parameters for different images cannot be joined: {sorted(sizes)}")
    ((size, align_corners),) = sizes
    neutral = {
        "theta": torch.eye(2, 3, dtype=torch.float64),
        "moved": torch.tensor(False),
        "color": torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64),
        "colored": torch.tensor(False),
        "cutout": torch.tensor(size),
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
    """Augment images [B, ch, H, W], B = G * m, the m images of each group side by side; same shape, dtype and device.

    Differentiable with respect to the images (twice, where torch's grid_sample is). Groups that a stage does not touch
    pass through it bit for bit. No strategy is the identity for images of any shape.
    Raises ValueError for images that the parameters were not drawn for, and for types other than float32 and float64:
    in half precision the sampling positions would be off by a tenth of a pixel. Autocast stays outside for that reason.
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
            x = torch.where(_spread(params.colored), _recolor(x, params.color), x)
        if params.theta is not None and params.moved is not None:
            x = torch.where(_spread(params.moved), _resample(x, params.theta, params.align_corners), x)
        if params.cutout is not None:
            x = x * _uncovered(params.cutout, params.im_size)
    return x.flatten(0, 1)


def _affine(name: str, u: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """[K, 2, 3] maps from output to input coordinates (x, y) in [-1, 1], from uniform numbers [K, 3]."""
    height, width = size
    theta = torch.eye(2, 3, dtype=torch.float64).repeat(len(u), 1, 1)
    across, down = (width - 1, height - 1) if align_corners else (width, height)  # pixels from -1 to 1
    if name == "crop":
        for axis, (side, length) in enumerate(((width, across), (height, down))):
            most = int(_CROP_RATIO * side + 0.5)
            theta[:, axis, 2] = ((u[:, axis] * (2 * most + 1)).floor() - most) * 2 / length
    elif name == "flip":
        theta[:, 0, 0] = torch.where(u[:, 0] < 0.5, -1.0, 1.0)
    elif name == "scale":
        theta[:, 0, 0], theta[:, 1, 1] = (u[:, :2] * (_SCALE_RATIO - 1 / _SCALE_RATIO) + 1 / _SCALE_RATIO).unbind(1)
    elif name == "rotate":
        angle = (2 * u[:, 0] - 1) * math.radians(_ROTATE_DEGREES)
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
        # Pixels are square, [-1, 1] x [-1, 1] is not when the image is not: without the ratio it would be sheared.
        theta[:, 0, 1] = -angle.sin() * down / across
        theta[:, 1, 0] = angle.sin() * across / down
    return theta


def _recolor(x: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    """Brightness, saturation and contrast, in this order, of x [G, m, ch, H, W]."""
    brightness, saturation, contrast = _spread(color).unbind(1)
    x = x + brightness
    gray = x.mean(dim=2, keepdim=True)  # one channel is its own mean: unchanged
    x = (x - gray) * saturation + gray
    level = x.mean(dim=(2, 3, 4), keepdim=True)
    return (x - level) * contrast + level


def _resample(x: torch.Tensor, theta: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """Bilinear samples of x [G, m, ch, H, W] at the positions that theta [G, 2, 3] maps the pixels to, zero outside."""
    groups, each, channels, height, width = x.shape
    grid = F.affine_grid(theta, [groups, channels, height, width], align_corners=align_corners)  # [G, H, W, 2]
    # The grid is made once per group and repeated: that is several times as fast as one grid per image.
    grid = grid.unsqueeze(1).expand(groups, each, height, width, 2).flatten(0, 1)
    moved = F.grid_sample(x.flatten(0, 1), grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
    return moved.unflatten(0, (groups, each))


def _uncovered(cutout: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """[G, 1, 1, H, W] bool, False inside each group's square, which may hang over the border."""
    inside = []
    for axis, (side, cut) in enumerate(zip(size, _cutout_sides(size), strict=True)):
        offset = torch.arange(side, device=cutout.device) - cutout[:, axis, None]
        inside.append((offset >= 0) & (offset < cut))  # [G, side]
    return ~(inside[0][:, None, None, :, None] & inside[1][:, None, None, None, :])


def _cutout_sides(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(_CUTOUT_RATIO * side + 0.5) for side in size)


def _spread(values: torch.Tensor) -> torch.Tensor:
    """[G, ...] -> [G, ..., 1, 1, 1, 1], to meet [G, m, ch, H, W]."""
    return values[..., None, None, None, None]
