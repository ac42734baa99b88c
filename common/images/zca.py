"""ZCA whitening with kornia: images whose pixels are decorrelated, and the way back.

W = U (S + eps)^(-1/2) U^T of the training images' covariance U S U^T, applied to (x - mean): among all whitening
transforms the one that leaves an image closest to itself. The training images alone decide it; the test images are
transformed by the same W. As in the trajectory-matching code, nothing is normalised by mean and std before or after.
"""

# D pixels of an image, all channels together: D = ch * H * W.

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from common.images import disk_cache, pixels
from common.images.image_data import ImageData
from common.images.pixels import in_unit_range
from common.images.whitening import Whitening
from common.system.errors import InputError

EPS = 0.1  # the trajectory-matching code's; added to the eigenvalues, in units of (0..1)^2
FORMAT = 1  # of the fit: raise it when the same images give another transform
LONG_FIT = 1e11  # N D^2 from which a fit is announced: it takes a few seconds on one core
CHUNK = 1024  # images transformed at a time: 12 MB in float32 at 3 x 32 x 32, 50 MB at 3 x 64 x 64


def whitening_fingerprint(images: Tensor, eps: float = EPS) -> str:
    """A hash of images `[N, ...]` (values, shape, type), eps and FORMAT: the same in every process."""
    return pixels.fingerprint(images, FORMAT, eps)


def fit(images: Tensor, eps: float = EPS) -> Whitening:
    """Fit a whitening to images `[N, ch, H, W]`, uint8 in 0..255 or float32 in 0..1, on the CPU.

    Holds two float32 copies of the images and a dozen matrices [D, D]; takes about N D^2 + 20 D^3 operations.
    Raises `ValueError` for fewer than two images.
    """
    from kornia.enhance import zca_mean

    matrix, mean, inverse = zca_mean(in_unit_range(images).flatten(1), eps=eps, return_inverse=True)
    assert inverse is not None  # asked for
    return Whitening(mean[0], matrix, inverse, eps, whitening_fingerprint(images, eps))


def whitening_of(train: ImageData, eps: float = EPS, progress: bool = True) -> Whitening:
    """The whitening of a dataset's training images, not yet whitened; fitted once, then kept in the cache folder.

    progress: say so (on stderr) where the fit takes more than a moment. Raises `InputError` for 3-D images.
    """
    if len(train.im_size) != 2:
        sides = " x ".join(map(str, train.im_size))
        raise InputError(f"ZCA whitening is for 2-D images, and those of {train.name} are {sides}: leave out --zca")
    key = whitening_fingerprint(train.images, eps)
    # What the images hold is not in the name: after a change the old file is replaced, not left behind.
    file = disk_cache.named_file("zca", [train.name, *train.im_size, eps])
    stored = disk_cache.read(file, key)
    if stored is not None:
        return Whitening(**stored[0], eps=eps, fingerprint=key)
    size = train.images[0].numel()
    if progress and len(train) * size**2 > LONG_FIT:
        told = f"fitting the ZCA whitening of {train.name}, {size} x {size} numbers: kept for the next start"
        tqdm.write(told, file=sys.stderr)
    whitening = fit(train.images, eps)
    tensors = {name: getattr(whitening, name).contiguous() for name in ("mean", "matrix", "inverse")}
    disk_cache.write(file, key, tensors, {})
    return whitening


def whiten(data: ImageData, whitening: Whitening, progress: bool = True) -> ImageData:
    """`data` with float32 images whitened once, mean 0 and std 1; what `data` held is left as it was."""
    images = torch.empty_like(data.images, dtype=torch.float32, memory_format=torch.contiguous_format)
    bar = tqdm(total=len(data), desc="ZCA whitening", unit="img", disable=not progress, delay=2, leave=False)
    with bar:
        for raw, out in zip(data.images.split(CHUNK), images.split(CHUNK), strict=True):
            out.copy_(whitening.apply(raw))
            bar.update(len(out))
    channels = data.channels
    return replace(data, images=images, mean=(0.0,) * channels, std=(1.0,) * channels, whitening=whitening)


def whitened(train: ImageData, test: ImageData, eps: float = EPS, progress: bool = True) -> tuple[ImageData, ImageData]:
    """Both splits, whitened as the training images ask for; raises `InputError` for 3-D images."""
    whitening = whitening_of(train, eps, progress)
    train, test = (replace(data, raw_fingerprint=data.fingerprint) for data in (train, test))
    return whiten(train, whitening, progress), whiten(test, whitening, progress)
