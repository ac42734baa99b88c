"""Renders volumes as pictures of lit surfaces, each turned so that a flat object shows its face.

A digit that was rotated in space is unreadable along most axes. Each volume is therefore viewed along the direction in
which its mass spreads least, and a little from the side. The view is turned from the depth axis to this direction by
the smallest rotation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 40  # pixels of a picture's side, and samples along each line of sight

_ZOOM = 1.15  # half the picture's side in units of half the volume's side: leaves room for rotated volumes
_TILT = 0.25  # radians off the face, about both axes of the picture, so that the object looks solid
_LIGHT = (-0.5, -0.6, -0.6)  # direction (depth, row, column) that the light comes from: in front, above, left
_AMBIENT, _DIFFUSE = 0.1, 0.75
# A sample is empty below the first value and has full opacity from the second on, in units of the volume's own typical
# value. The two separate synthetic digits from the haze around them and keep thin strokes of real digits whole.
_EMPTY, _FULL = 0.5, 0.9
_OPACITY = 0.5


def render(volumes: Tensor) -> Tensor:
    """Render volumes [N, D, H, W] in 0..1 as pictures float32 [N, SIDE, SIDE] in 0..1, dark on white.

    The viewer is at small depths. Rows and columns of a picture run along H and W as far as the rotation allows.
    Whatever its brightness, a volume shows the surface at half its typical value. A volume takes 25 ms on one core.
    """
    volumes = volumes.float()
    smooth = F.avg_pool3d(F.pad(volumes, [1] * 6), kernel_size=3, stride=1)
    softened = (volumes + smooth) / 2  # smooths the grain of single voxels
    density = (softened / _typical(softened) - _EMPTY) / (_FULL - _EMPTY)
    density, smooth = _resampled(torch.stack([density, smooth], dim=1), _views(density)).unbind(1)

    # Along each line of sight a sample hides what is behind it. Tensors are [N, SIDE, SIDE, SIDE] with depth first.
    opacity = _OPACITY * density.clamp(0, 1)
    passed = (1 - opacity).cumprod(dim=1)
    arriving = F.pad(passed[:, :-1], (0, 0, 0, 0, 1, 0), value=1)
    brightness = _AMBIENT + _DIFFUSE * _facing_light(smooth)
    return ((arriving * opacity * brightness).sum(dim=1) + passed[:, -1]).clamp(0, 1)


def _typical(volumes: Tensor) -> Tensor:
    """Return the typical value [N, 1, 1, 1]: the mean over voxels, each weighted by its own value."""
    axes = (1, 2, 3)
    tiny = 1e-6
    return volumes.square().sum(axes, keepdim=True) / volumes.sum(axes, keepdim=True).clamp(min=tiny) + tiny


def _facing_light(smooth: Tensor) -> Tensor:
    """Return the cosine between outward normal and light at every sample, 0 for surfaces that face away; same shape."""
    slopes = torch.gradient(smooth, dim=(1, 2, 3))
    length = math.hypot(*_LIGHT)
    towards = sum(-light / length * slope for light, slope in zip(_LIGHT, slopes, strict=True))
    steepness = sum(slope.square() for slope in slopes).sqrt()  # type: ignore[union-attr]
    return (towards / (steepness + 1e-3)).clamp(0, 1)


def _views(density: Tensor) -> Tensor:
    """Return rotations [N, 3, 3] from (depth, row, column) of a picture to the axes of volumes [N, D, H, W]."""
    along_axes = [torch.arange(side, dtype=torch.float32) - (side - 1) / 2 for side in density.shape[1:]]
    positions = torch.stack(torch.meshgrid(*along_axes, indexing="ij")).flatten(1)  # [3, D * H * W]
    weights = density.clamp(min=0).flatten(1)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    centred = positions - (weights @ positions.T)[:, :, None]  # [N, 3, D * H * W]
    spread, axes = torch.linalg.eigh((centred * weights[:, None]) @ centred.mT)  # ascending
    sight = torch.where(axes[:, :1, 0] < 0, -axes[:, :, 0], axes[:, :, 0])
    # An empty volume or a ball has no preferred direction: it is viewed from the front.
    flat = spread[:, :1] < 0.99 * spread[:, -1:]
    sight = torch.where(flat, sight, torch.tensor([1.0, 0.0, 0.0]))
    # Rodrigues' formula for the rotation that takes the depth axis to `sight` the shortest way.
    cross = torch.zeros(len(density), 3, 3)
    cross[:, 0, 1:], cross[:, 1:, 0] = -sight[:, 1:], sight[:, 1:]
    turn = torch.eye(3) + cross + cross @ cross / (1 + sight[:, :1, None])
    cos, sin = math.cos(_TILT), math.sin(_TILT)
    up = torch.tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    aside = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    return turn @ up @ aside


def _resampled(volumes: Tensor, views: Tensor) -> Tensor:
    """Sample volumes [N, K, D, H, W] (K channels) behind each pixel of the rotated view: [N, K, SIDE, SIDE, SIDE]."""
    sides = torch.tensor(volumes.shape[2:], dtype=torch.float32)
    theta = views * (_ZOOM * sides.max() / sides)[:, None]
    theta = F.pad(theta.flip(1, 2), (0, 1))  # affine_grid counts axes from the last one
    grid = F.affine_grid(theta, [len(volumes), 1, SIDE, SIDE, SIDE], align_corners=False)
    return F.grid_sample(volumes, grid, align_corners=False)
