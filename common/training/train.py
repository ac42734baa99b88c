"""Trains one network on a synthetic set or on real images and tests it, as the authors' evaluations do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config.options import DistillOptions
from common.datasets import ImageData
from common.matching import augment, dc_augment
from common.matching.transforms import Augmentation, Augmenter
from common.networks import has_dropout
from common.networks.graphs import Gradients, graphed_gradients, set_gradients
from common.networks.pools import EvalProtocol
from common.system.devices import fuses, to_device

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
AUGMENTED_EPOCHS, PLAIN_EPOCHS = 1000, 300  # as in DC's main script
# The values of GLaD's protocol, as the authors' ImageNet-abcde uses it.
GLAD_STEP_SIZES, GLAD_STEP_SIZE = {"VGG11": 1e-4}, 1e-3  # learning rates: by network, and of all other networks
GLAD_DECAY = 0.995  # decay per epoch of the moving average of the weights
GLAD_FIRST = 1e-7  # learning rate of the first epoch, as a share of the full learning rate
_TEST_PIXELS = 500 * 32 * 32  # of a batch of a test; at 128 px 500 images would take 10 GB


class TrainingSet(Protocol):
    """Labelled images that return normalised batches: an `ImageData`, or `Batches` of a synthetic set."""

    @property
    def labels(self) -> Tensor: ...

    def batch(self, indices: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batches:
    """N images that are normalised already, [N, ch, ...], and their labels [N]."""

    images: Tensor
    labels: Tensor
    soft: Tensor | None = None
    """probabilities of the C classes, float32 [N, C], with which networks are trained in place of the labels"""

    def batch(self, indices: Tensor) -> Tensor:
        """The images at these indices, images[indices]."""
        return self.images[indices]


def targets(data: TrainingSet, indices: Tensor) -> Tensor:
    """What the loss compares outputs with: the labels int64 [B] of these images, or their soft labels [B, C]."""
    soft = data.soft if isinstance(data, Batches) else None
    return data.labels[indices] if soft is None else soft[indices]


@dataclass(frozen=True)
class EvaluationProtocol:
    """How evaluation networks are trained: SGD with momentum 0.9 and weight decay 5e-4, with one of two schedules.

    kind "dc" (DC, DM, TM and 3D-MNIST in the authors' code) trains for `epochs` + 1 epochs. After the epoch with the
    number `epochs // 2 + 1`, counted from 0, the learning rate falls to a tenth and the momentum is reset to zero. The
    final weights are tested.
    kind "glad" (ImageNet-abcde, after GLaD) trains for `epochs` epochs. The learning rate rises linearly in the first
    half and falls to zero by a cosine in the second. The moving average of the weights over epochs is tested.
    epochs: None for DC's rule, which is 1000 if images are augmented and 300 if not. lr: the learning rate, None for
    GLaD's table. strategy: the DSA strategy; '' turns DSA off. dc_strategy: DC's augmentation, only without DSA.
    augmentation: "dsa" for these two; any other one takes their place, and `strategy` is then ''.
    `for_network` fills in the values that depend on the network.
    """

    epochs: int | None
    lr: float | None
    batch: int
    strategy: str
    dc_strategy: str = ""
    kind: EvalProtocol = "dc"
    augmentation: Augmentation = "dsa"

    @classmethod
    def of(cls, options: DistillOptions) -> EvaluationProtocol:
        """The protocol of the evaluations of a distillation with these options."""
        lr = options.lr_net if options.eval_protocol == "dc" else None
        return cls(options.epoch_eval_train, lr, options.batch_train, options.strategy, kind=options.eval_protocol)

    def for_network(self, dataset: str, network: str) -> EvaluationProtocol:
        """This protocol with epochs, lr and dc_strategy set for one evaluation network on a dataset.

        epochs and lr are chosen only where they are None. dc_strategy is DC's augmentation for this dataset and
        network if the kind is "dc", DSA is off and no other augmentation takes its place, and '' otherwise.
        """
        dsa = bool(augment.parse_strategy(self.strategy))
        without_dc = dsa or self.kind == "glad" or self.augmentation != "dsa"
        dc_strategy = "" if without_dc else dc_augment.strategy_for(dataset, network)
        augmented = dsa or dc_strategy or self.augmentation not in ("dsa", "none")
        by_rule = AUGMENTED_EPOCHS if augmented else PLAIN_EPOCHS
        epochs = by_rule if self.epochs is None else self.epochs
        lr = self.lr
        if lr is None:
            lr = next((each for name, each in GLAD_STEP_SIZES.items() if network.startswith(name)), GLAD_STEP_SIZE)
        return replace(self, epochs=epochs, lr=lr, dc_strategy=dc_strategy)

    @property
    def epochs_of_training(self) -> int:
        """The number of epochs that are run. Raises ValueError if `for_network` has not set `epochs` yet."""
        if self.epochs is None:
            raise ValueError("The number of epochs depends on the network: call for_network first.")
        return self.epochs + 1 if self.kind == "dc" else self.epochs

    def batches(self, images: int) -> int:
        """The number of batches that training on this many images takes. Raises as `epochs_of_training`."""
        return self.epochs_of_training * math.ceil(images / self.batch)

    def step_size(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0. Raises ValueError if lr or epochs is None."""
        if self.lr is None or self.epochs is None:
            raise ValueError("The learning rate depends on the network: call for_network first.")
        if self.kind == "dc":
            return self.lr if epoch < slow_from(self.epochs) else 0.1 * self.lr
        half = max(1, self.epochs // 2)
        if epoch <= half:
            return self.lr * (GLAD_FIRST + (1 - GLAD_FIRST) * epoch / half)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - half - 1) / half))

    def starts_anew(self, epoch: int) -> bool:
        """Whether the momentum is reset before this epoch: epoch 0, and with kind "dc" the first at the lower rate."""
        return epoch == 0 or (self.kind == "dc" and epoch == slow_from(self.epochs_of_training - 1))

    def describe_augmentation(self) -> str:
        """How the images are augmented, in a word or two: "cutmix", "dsa color_crop", "dc crop_noise" or "none"."""
        if self.augmentation != "dsa":
            return self.augmentation
        if augment.parse_strategy(self.strategy):
            return f"dsa {self.strategy}"
        return f"dc {self.dc_strategy}" if self.dc_strategy else "none"

    def as_metadata(self) -> dict[str, Any]:
        """The values to store in a synthetic-set file; those after `strategy` are left out at their defaults."""
        defaults = (("dc_strategy", ""), ("kind", "dc"), ("augmentation", "dsa"))
        return {key: value for key, value in asdict(self).items() if (key, value) not in defaults}


def train(
    network: nn.Module,
    data: TrainingSet,
    protocol: EvaluationProtocol,
    draws: torch.Generator,
    forward: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[], object] = lambda: None,
    augmenter: Augmenter | None = None,
    gradients: Gradients | None = None,
) -> None:
    """Train `network` in place by the protocol, so that it ends with the weights to test.

    draws: a CPU generator for the order of images and the augmentation. forward: the compiled network, or None to call
    `network` itself. on_batch is called after each batch, and may raise. augmenter: that of `augmenter_of`, for a
    protocol with another augmentation than DSA. gradients: what computes those of a batch in place of `forward` and
    `backward` (`gradients_of`, captured as a graph). The CPU never waits for the device within an epoch, but for
    AutoAugment and RandAugment.
    """
    check_augmenter(protocol, augmenter)
    for optimizer in epochs(protocol, list(network.parameters()), list(network.buffers())):
        train_epoch(
            network,
            data,
            optimizer,
            protocol.batch,
            protocol.strategy,
            draws,
            forward,
            on_batch,
            protocol.dc_strategy,
            augmenter,
            gradients,
        )


def augmenter_of(protocol: EvaluationProtocol, data: ImageData) -> Augmenter | None:
    """What augments in place of DSA by this protocol; None for "dsa" and "none". Raises InputError as `Augmenter`.

    data: images that are normalised as those that networks are trained on, of the same classes.
    """
    return None if protocol.augmentation in ("dsa", "none") else Augmenter(protocol.augmentation, data)


def check_augmenter(protocol: EvaluationProtocol, augmenter: Augmenter | None) -> None:
    """Raise ValueError for training without what the protocol says, which would only show in the accuracy."""
    if (augmenter is None) != (protocol.augmentation in ("dsa", "none")):
        raise ValueError(f"to train with {protocol.augmentation} takes what `augmenter_of` returns")


def epochs(
    protocol: EvaluationProtocol, parameters: Sequence[Tensor], buffers: Sequence[Tensor]
) -> Iterator[torch.optim.Optimizer]:
    """Yield for each epoch of a protocol the optimiser with its learning rate; the caller then trains for one epoch.

    parameters, buffers: those of one network, or of several networks stacked. After the last epoch they hold the values
    to test: with kind "glad", the moving averages over epochs of the weights and of the batch statistics.
    """
    current = [tensor.detach() for tensor in (*parameters, *buffers)]
    averages: list[Tensor] = []
    for epoch in range(protocol.epochs_of_training):
        lr = protocol.step_size(epoch)
        if protocol.starts_anew(epoch):
            optimizer = sgd(parameters, lr, MOMENTUM, WEIGHT_DECAY)
        optimizer.param_groups[0]["lr"] = lr
        yield optimizer
        if protocol.kind == "glad":
            if averages:
                _update_averages(averages, current, epoch)
            else:
                averages = [tensor.clone() for tensor in current]
    for tensor, average in zip(current, averages, strict=False):  # kind "dc" has no averages
        tensor.copy_(average)


def sgd(parameters: Sequence[Tensor], lr: float, momentum: float, decay: float) -> torch.optim.SGD:
    """SGD that makes a step in one operation where the device has that. There it may round otherwise than elsewhere."""
    fused = True if fuses(parameters[0].device) else None
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay, fused=fused)


@torch.no_grad()
def _update_averages(averages: Sequence[Tensor], current: Sequence[Tensor], count: int) -> None:
    """Add the values after an epoch to the averages over the `count` epochs before it.

    The averages are plain means over the first epochs (200 at GLAD_DECAY 0.995) and exponential averages later.
    """
    weight = max(1 / (count + 1), 1 - GLAD_DECAY)
    for average, value in zip(averages, current, strict=True):
        if average.is_floating_point():
            average.lerp_(value, weight)
        else:  # the number of batches that BatchNorm has seen
            average.copy_(value)


def slow_from(epochs: int) -> int:
    """The first epoch, counted from 0, with a tenth of the learning rate, in the authors' schedule.

    Evaluation networks and expert networks share this schedule.
    """
    return epochs // 2 + 2


def train_epoch(
    network: nn.Module,
    data: TrainingSet,
    optimizer: torch.optim.Optimizer,
    batch: int,
    strategy: str,
    draws: torch.Generator,
    forward: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[], object] = lambda: None,
    dc_strategy: str = "",
    augmenter: Augmenter | None = None,
    gradients: Gradients | None = None,
) -> None:
    """Train on every image once in random order, with the cross-entropy loss; the last batch may be smaller.

    DSA draws one operation per batch and its parameters per image. dc_strategy: DC's augmentation, applied after DSA,
    '' for none. The other arguments are those of `train`. The loss takes soft labels where the data have them.
    """
    forward = network if forward is None else forward
    device = data.labels.device
    network.train()
    order = to_device(torch.randperm(len(data.labels), generator=draws), device)
    for indices, labels in zip(order.split(batch), targets(data, order).split(batch), strict=True):
        images = data.batch(indices)
        drawn = augment.sample(strategy, len(indices), draws, images.shape[2:], one_strategy=True, device=device)
        images = augment.apply(images, drawn)
        if dc_strategy:
            images = dc_augment.apply(
                images, dc_augment.sample(dc_strategy, len(images), draws, images.shape[1:], device=device)
            )
        if augmenter is not None:
            images, labels = augmenter(images, labels, draws)
        if gradients is None:
            loss = F.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            loss.backward()
        else:
            set_gradients(optimizer, gradients(images, labels))
        optimizer.step()
        on_batch()


def gradients_of(network: nn.Module, forward: Callable[[Tensor], Tensor], device: torch.device) -> Gradients | None:
    """What `train` and `train_epoch` take as `gradients`: those of this network's steps, captured as CUDA graphs.

    None for a network with dropout, whose draws a graph would have to make.
    """
    if has_dropout(network):
        return None
    parameters = list(network.parameters())
    return graphed_gradients(lambda images, labels: F.cross_entropy(forward(images), labels), parameters, device)


@torch.no_grad()
def accuracy(
    network: nn.Module,
    data: ImageData,
    forward: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[], object] = lambda: None,
) -> float | None:
    """Top-1 accuracy on `data` as a fraction, or None if the network diverged.

    A network has diverged if its weights, its buffers or its outputs are not finite. Of outputs that are NaN the first
    counts as the largest, so such a network would otherwise seem to guess class 0 throughout.
    on_batch is called after each batch, and may raise. The CPU waits for the device only once, at the end.
    """
    network.eval()
    forward = network if forward is None else forward
    parts = []
    for rows in test_rows(data):
        parts.append(forward(data.batch(rows)))
        on_batch()
    logits = torch.cat(parts)  # [N, C]; what follows is done once, not for each batch
    correct = (logits.argmax(dim=1) == data.labels).sum()
    finite = all_finite([*network.parameters(), *network.buffers(), logits], data.labels.device)
    count, sound = torch.stack([correct, finite]).tolist()
    return count / len(data.labels) if sound else None


def test_batch(im_size: Sequence[int]) -> int:
    """The images per batch of a test: 500 of up to 32x32 pixels, and fewer of larger images."""
    return max(1, _TEST_PIXELS // max(math.prod(im_size), 32 * 32))


def test_rows(data: ImageData) -> list[slice]:
    """The images of each batch of a test."""
    size = test_batch(data.im_size)
    return [slice(first, first + size) for first in range(0, len(data.labels), size)]


def batches_of_test(images: int, im_size: Sequence[int]) -> int:
    """The number of batches in which `accuracy` tests a network on this many images."""
    return math.ceil(images / test_batch(im_size))


def all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether no number in the tensors is NaN or infinite: bool [] on their device, for which nothing waits."""
    whole = [tensor.detach().reshape(-1) for tensor in tensors]
    return are_finite(torch.cat(whole), 0) if whole else torch.ones((), dtype=torch.bool, device=device)


def are_finite(numbers: Tensor, dim: int) -> Tensor:
    """Whether no number along this axis is NaN or infinite: bool. Zero times such a number is NaN, and any other zero.

    That is three operations on an accelerator, where `isfinite` and `all` are five.
    """
    return numbers.mul(0).sum(dim) == 0
