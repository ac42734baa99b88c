"""Measures how good a synthetic set is: `evaluate` trains new networks on the set and tests them on real images."""

from __future__ import annotations

import logging
from typing import Any, get_args

import torch
from torch import Tensor

from common.config.checks import in_float32
from common.config.options import DSA_STRATEGY, EVALUATION_EPOCHS, DistillOptions
from common.datasets import ImageData
from common.images.pixel_values import warn_unless_like
from common.matching.augment import parse_strategy
from common.matching.transforms import Augmentation
from common.networks import build_network
from common.synset.base import LearnedSet
from common.synset.soft_labels import SoftLabels, checked
from common.system.errors import InputError
from common.system.text import point_of
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol, TrainingSet


def evaluate(
    synset: LearnedSet | tuple[Tensor, Tensor] | ImageData,
    test: ImageData,
    *,
    model: str = "ConvNetD3",
    networks: int = 5,
    epochs: int = EVALUATION_EPOCHS,
    lr: float = DistillOptions.lr_net,
    batch: int = DistillOptions.batch_train,
    dsa_strategy: str = DSA_STRATEGY,
    augmentation: Augmentation = "dsa",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Train networks from scratch on a synthetic set, or on real images, and test them.

    Gives the same accuracies as `DM/evaluate.py` with the same values. Networks are trained by SGD with momentum 0.9
    and weight decay 5e-4 for epochs + 1 epochs, with a tenth of the learning rate in the second half.

    Args:
        synset: a `SynSet`; or (images, labels), normalised like `test`, float32 [N, ch, *im_size] and int64 [N] in
            0 .. C - 1, or soft labels, probabilities float32 [N, C]; or an `ImageData` such as the training images that
            `load_dataset` gives. The argument is not changed.
        test: real test images of C classes. Networks are trained on the device of these images.
        model: the evaluation network, such as ConvNetD3, AlexNet, VGG11, ResNet18; see `build_network`.
        networks: how many networks are trained, with different initial weights.
        epochs, lr, batch: number of epochs, learning rate and batch size.
        dsa_strategy: DSA augmentations joined by underscores; "none" or "" for none (then MNIST is augmented as in DC).
        augmentation: "dsa", or in its place "none", "autoaugment", "randaugment", "cutmix" or "mixup", as torchvision
            has them; autoaugment and randaugment augment one image after another, which is slow.
        seed: determines every random draw. The global random state is not changed.
        progress: whether to show a progress bar.

    Returns:
        {"network": model, "mean", "std", "n": networks, "accuracies": one per network}. Accuracies are fractions of the
        test images. "std" is the population standard deviation, as the authors report it. A network that diverged,
        whose weights or outputs are not finite, has None; the figures are of the other n, and "diverged" counts it.

    Raises:
        InputError: for a value that cannot work, an unknown model or augmentation, a set that does not fit `test`, or
            if all networks diverge.
    """
    for name, value, least in (("networks", networks, 1), ("epochs", epochs, 0), ("batch", batch, 1)):
        if value < least:
            raise InputError(f"{name} is {value}: give at least {least}")
    if not lr > 0:
        raise InputError(f"lr is {lr}: give a positive learning rate")
    if not in_float32(lr):
        raise InputError(f"lr is {lr}: give one that is finite in float32")
    parse_strategy(dsa_strategy)
    if augmentation not in get_args(Augmentation):
        raise InputError(f"augmentation is '{augmentation}': give one of {', '.join(get_args(Augmentation))}")
    with torch.random.fork_rng(devices=[]):  # building a layer draws its weights from the global random state
        network = build_network(model, test.channels, test.num_classes, test.im_size).to(test.device)
    data = _training_set(synset, test)
    accuracies = evaluate_pool(
        {model: EvaluationNetwork(network)},
        lambda number: data,
        test,
        EvaluationProtocol(epochs, lr, batch, dsa_strategy if augmentation == "dsa" else "", augmentation=augmentation),
        networks,
        seed,
        dataset=test.name,
        progress=progress,
        lower=lambda: f"lower lr, --lr_net of the commands ({lr:g})",
    )
    return point_of(accuracies, model)


def _pair(synset: object) -> tuple[Tensor, Tensor]:
    """(images, labels). Raises InputError for what is neither a pair of tensors nor one of the other sets."""
    if isinstance(synset, tuple) and len(synset) == 2 and all(isinstance(each, Tensor) for each in synset):
        return synset
    told = ", ".join(type(each).__name__ for each in synset) if isinstance(synset, tuple) else type(synset).__name__
    hint = ": load_synset gives (SynSet, metadata), of which the first is meant" if "SynSet" in told else ""
    raise InputError(f"give a SynSet, (images, labels) as tensors, or ImageData, not {told}{hint}")


def _training_set(synset: LearnedSet | tuple[Tensor, Tensor] | ImageData, test: ImageData) -> TrainingSet:
    """The set on the device of the test images. Raises InputError if the set does not fit the test images."""
    if isinstance(synset, ImageData):
        shape, labels = (synset.channels, *synset.im_size), synset.labels
        if _normalisation(synset) != _normalisation(test):
            logging.getLogger(__name__).warning(
                "the images to train on are normalised by %s, those of %s by %s: networks are tested on other values "
                "than they are trained on", _normalisation(synset), test.name, _normalisation(test),
            )  # fmt: skip
        data: TrainingSet = synset.to(test.device)
    else:
        images, labels = synset.get(need_copy=True) if isinstance(synset, LearnedSet) else _pair(synset)
        shape, soft = tuple(images.shape[1:]), _soft(synset, images, labels, test.num_classes)
        if soft is not None:
            labels = soft.values.argmax(dim=1)
        if labels.ndim != 1 or len(images) != len(labels) or labels.dtype != torch.long:
            raise InputError(f"{len(images)} images need as many int64 labels, not {labels.dtype} {list(labels.shape)}")
        if images.dtype != torch.float32:
            raise InputError(
                f"the images to train on are {images.dtype}: normalise them to float32, as those of `test`"
            )
        if not images.isfinite().all():
            raise InputError("the images to train on are not finite: they hold NaN or infinity")
        if not isinstance(synset, LearnedSet):
            remedy = (
                "which gives a wrong accuracy if these are pixels in {range}: {first}normalise them as test.normalise "
                "does"
            )
            warn_unless_like(images.detach(), test, "the set to train on", remedy)
        probabilities = None if soft is None else soft.probabilities().to(test.device)
        data = Batches(images.detach().to(test.device), labels.to(test.device), probabilities)
    if shape != (test.channels, *test.im_size):
        raise InputError(f"the images to train on are {shape}, those of {test.name} {(test.channels, *test.im_size)}")
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < test.num_classes:
        raise InputError(
            f"the set needs images with labels from 0 to {test.num_classes - 1}, the classes of {test.name}"
        )
    return data


def _soft(synset: object, images: Tensor, labels: Tensor, classes: int) -> SoftLabels | None:
    """The soft labels of a set, or those that a pair has for labels. Raises InputError if they are no probabilities."""
    if isinstance(synset, LearnedSet):
        return synset.soft_labels
    if labels.ndim != 2 or not labels.is_floating_point():
        return None
    return checked(
        labels, "probabilities", len(images), classes, "the set to train on", "take the softmax if they are logits"
    )


def _normalisation(data: ImageData) -> str:
    """Say how the values of images were normalised, e.g. "mean [0.5] and std [0.25]"."""
    if data.whitening is not None:
        return f"the whitening {data.whitening.fingerprint}"
    return f"mean {list(data.mean)} and std {list(data.std)}"
