"""How good is a synthetic set: `evaluate(synset, test)` trains fresh networks on it and tests them on real images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.config.checks import in_float32
from common.config.options import DSA_STRATEGY
from common.datasets import ImageData
from common.matching.augment import parse_strategy
from common.networks import build_network
from common.synset.synset import SynSet
from common.system.errors import InputError
from common.system.text import point_of
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol, TrainingSet


def evaluate(
    synset: SynSet | tuple[Tensor, Tensor] | ImageData,
    test: ImageData,
    *,
    model: str = "ConvNetD3",
    networks: int = 5,
    epochs: int = 1000,
    lr: float = 0.01,
    batch: int = 256,
    dsa_strategy: str = DSA_STRATEGY,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Train networks from scratch on a synthetic set, or on real images, and test them.

    As `DM/evaluate.py` with the same values, and with the same accuracies: SGD with momentum 0.9 and weight decay 5e-4,
    epochs + 1 epochs, a tenth of the step size in the second half.

    Args:
        synset: a `SynSet`; or (images, labels), normalised like `test`, float32 [N, ch, *im_size] and int64 [N] in
            0 .. C - 1; or an `ImageData` such as the training images that `load_dataset` gives. It is left unchanged.
        test: real test images of C classes. Networks are trained on its device.
        model: what is trained, such as ConvNetD3, AlexNet, VGG11, ResNet18; see `build_network`.
        networks: how many of them, with different initial weights.
        epochs, lr, batch: length, step size and batch size of their training.
        dsa_strategy: augmentations joined by underscores; "none" or "" for none (then MNIST is augmented as in DC).
        seed: every random draw is a function of it; the global random state is left alone.
        progress: show a progress bar.

    Returns:
        {"network": model, "mean", "std", "n": networks, "accuracies": of each network}, fractions of the test images;
        the standard deviation is that of the population, as the authors report it. A network that diverged, whose
        weights or outputs are not finite, has None; the figures are of the other n, and "diverged" counts it.

    Raises:
        InputError: for a value that cannot work, an unknown model or augmentation, a set that does not fit `test`, and
            where all networks diverge.
    """
    for name, value, least in (("networks", networks, 1), ("epochs", epochs, 0), ("batch", batch, 1)):
        if value < least:
            raise InputError(f"{name} is {value}: give at least {least}")
    if not lr > 0:
        raise InputError(f"lr is {lr}: give a positive step size")
    if not in_float32(lr):
        raise InputError(f"lr is {lr}: give one that is finite in float32")
    parse_strategy(dsa_strategy)
    with torch.random.fork_rng(devices=[]):  # the weights of a new layer are drawn from the global state
        network = build_network(model, test.channels, test.num_classes, test.im_size).to(test.device)
    data = _training_set(synset, test)
    accuracies = evaluate_pool(
        {model: EvaluationNetwork(network)},
        lambda number: data,
        test,
        EvaluationProtocol(epochs, lr, batch, dsa_strategy),
        networks,
        seed,
        dataset=test.name,
        progress=progress,
        lower=f"lower lr, --lr_net of the commands ({lr:g})",
    )
    return point_of(accuracies, model)


def _training_set(synset: SynSet | tuple[Tensor, Tensor] | ImageData, test: ImageData) -> TrainingSet:
    """The set on the device of the test images; InputError where it does not fit them."""
    if isinstance(synset, ImageData):
        shape, labels = (synset.channels, *synset.im_size), synset.labels
        data: TrainingSet = synset.to(test.device)
    else:
        images, labels = synset.get(need_copy=True) if isinstance(synset, SynSet) else synset
        shape = tuple(images.shape[1:])
        if labels.ndim != 1 or len(images) != len(labels) or labels.dtype != torch.long:
            raise InputError(f"{len(images)} images need as many int64 labels, not {labels.dtype} {list(labels.shape)}")
        if images.dtype != torch.float32:
            raise InputError(
                f"the images to train on are {images.dtype}: normalise them to float32, as those of `test`"
            )
        if not images.isfinite().all():
            raise InputError("the images to train on are not finite: they hold NaN or infinity")
        data = Batches(images.detach().to(test.device), labels.to(test.device))
    if shape != (test.channels, *test.im_size):
        raise InputError(f"the images to train on are {shape}, those of {test.name} {(test.channels, *test.im_size)}")
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < test.num_classes:
        raise InputError(
            f"the set needs images with labels from 0 to {test.num_classes - 1}, the classes of {test.name}"
        )
    return data
