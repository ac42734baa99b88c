"""ZCA whitening with kornia: decorrelates the pixels of images, and inverts the transform.

A whitened image is W (x - mean) with W = U (S + eps)^(-1/2) U^T, where U S U^T is the covariance of the training
images. Of all whitening transforms, this one changes an image the least. It is fitted to the training images alone, and
the test images are transformed with the same mean and W. As in the trajectory-matching code, images are not normalised
by mean and std, neither before nor after.
"""

# D is the number of pixels of an image in all channels together: D = ch * H * W.

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
from common.system.devices import total_memory
from common.system.errors import InputError
from common.system.progress import Progress
from common.system.text import describe_bytes, describe_seconds

EPS = 0.1  # as in the trajectory-matching code; added to the eigenvalues, for pixels in 0..1
FORMAT = 1  # the version of the fit: increase it when the same images give another transform
LONG_FIT = 1e11  # a fit with a larger N D^2 is announced; at this value it takes a few seconds on one core
_RATE = 3.4e10  # operations of a fit per second on one core: CIFAR-10 takes 31 s
_MATRICES = 8  # [D, D], that a fit holds at least
CHUNK = 1024  # the number of images transformed at a time: in float32, 12 MB at 3 x 32 x 32, 50 MB at 3 x 64 x 64


def whitening_fingerprint(images: Tensor, eps: float = EPS) -> str:
    """A hash of images `[N, ...]` (values, shape, type), eps and FORMAT; it is the same in every process."""
    return pixels.fingerprint(images, FORMAT, eps)


def fit(images: Tensor, eps: float = EPS) -> Whitening:
    """Fit a whitening to images `[N, ch, H, W]` on the CPU, uint8 in 0..255 or float32 in 0..1.

    The fit needs memory for two float32 copies of the images and a dozen matrices [D, D]. It takes about
    N D^2 + 20 D^3 operations. Raises `ValueError` for fewer than two images.
    """
    from kornia.enhance import zca_mean

    matrix, mean, inverse = zca_mean(in_unit_range(images).flatten(1), eps=eps, return_inverse=True)
    assert inverse is not None  # because of return_inverse
    return Whitening(mean[0], matrix, inverse, eps, whitening_fingerprint(images, eps))


def whitening_of(train: ImageData, eps: float = EPS, progress: bool = True) -> Whitening:
    """The whitening for a dataset, from its raw training images; it is fitted once, then kept in the cache folder.

    progress: whether to announce a fit of more than a few seconds on stderr. Raises `InputError` for 3-D images.
    """
    if len(train.im_size) != 2:
        sides = " x ".join(map(str, train.im_size))
        raise InputError(f"ZCA whitening is for 2-D images, and those of {train.name} are {sides}: leave out --zca")
    train.check_all()
    key = whitening_fingerprint(train.images, eps)
    # The name does not depend on the images' values, so that after a change the old cache file is replaced.
    file = disk_cache.named_file("zca", [train.name, *train.im_size, eps])
    stored = disk_cache.read(file, key)
    if stored is not None:
        return Whitening(**stored[0], eps=eps, fingerprint=key)
    size = train.images[0].numel()
    check_fit(train.name, len(train), size)
    if progress and len(train) * size**2 > LONG_FIT:
        seconds = (len(train) * size**2 + 20 * size**3) / _RATE
        told = f"about {describe_seconds(seconds)} of one core, kept for the next start"
        tqdm.write(f"fitting the ZCA whitening of {train.name}, {size} x {size} numbers: {told}", file=sys.stderr)
    whitening = fit(train.images, eps)
    tensors = {name: getattr(whitening, name).contiguous() for name in ("mean", "matrix", "inverse")}
    disk_cache.write(file, key, tensors, {})
    return whitening


def check_fit(name: str, count: int, size: int) -> None:
    """Raise `InputError` if whitening `count` images of `size` numbers takes more than the memory of this machine."""
    needed, total = 4 * (2 * count * size + _MATRICES * size**2), total_memory(torch.device("cpu"))
    if total is not None and needed > total:
        raise InputError(
            f"ZCA whitening of {name} is a matrix of {size:,} x {size:,} numbers, which takes at least "
            f"{describe_bytes(needed)} of memory to fit, and this machine has {describe_bytes(total)}: leave out "
            "--zca, or give smaller images by --image_size"
        )


def whiten(data: ImageData, whitening: Whitening, progress: bool = True) -> ImageData:
    """A copy of `data` with whitened float32 images, mean 0 and std 1; `data` itself is unchanged."""
    data.check_all()
    images = torch.empty_like(data.images, dtype=torch.float32, memory_format=torch.contiguous_format)
    bar = Progress(total=len(data), desc="ZCA whitening", unit="img", disable=not progress, delay=2, leave=False)
    with bar:
        for raw, out in zip(data.images.split(CHUNK), images.split(CHUNK), strict=True):
            out.copy_(whitening.apply(raw))
            bar.update(len(out))
    channels = data.channels
    return replace(data, images=images, mean=(0.0,) * channels, std=(1.0,) * channels, whitening=whitening, check=None)


def whitened(train: ImageData, test: ImageData, eps: float = EPS, progress: bool = True) -> tuple[ImageData, ImageData]:
    """Whiten both splits with the whitening of the training images. Raises `InputError` for 3-D images."""
    whitening = whitening_of(train, eps, progress)
    train, test = (replace(data, raw_fingerprint=data.fingerprint) for data in (train, test))
    return whiten(train, whitening, progress), whiten(test, whitening, progress)
