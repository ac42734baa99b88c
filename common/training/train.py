"""Training a network on a synthetic set or on real images, and testing it, as the authors' evaluations do."""

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
from common.matching import augment
from common.networks.pools import EvalProtocol
from common.training import dc_augment

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
AUGMENTED_EPOCHS, PLAIN_EPOCHS = 1000, 300  # DC's main script
# GLaD's protocol, as the authors' ImageNet-abcde uses it.
GLAD_STEP_SIZES, GLAD_STEP_SIZE = {"VGG11": 1e-4}, 1e-3
GLAD_DECAY = 0.995  # of the weights' moving average, an epoch
GLAD_FIRST = 1e-7  # of the step size, as a share of the full one
TEST_BATCH = 500


class TrainingSet(Protocol):
    """Labelled images that hand out normalised batches: an `ImageData`, or `Batches` over a synthetic set."""

    @property
    def labels(self) -> Tensor: ...

    def batch(self, indices: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batches:
    """Images already normalised, [N, ch, ...], and their labels [N]."""

    images: Tensor
    labels: Tensor

    def batch(self, indices: Tensor) -> Tensor:
        """images[indices]."""
        return self.images[indices]


@dataclass(frozen=True)
class EvaluationProtocol:
    """How networks are trained on a synthetic set: SGD with momentum 0.9 and weight decay 5e-4, in one of two ways.

    kind dc (DC, DM, TM and 3D-MNIST in the authors' code): epochs + 1 epochs; after epoch epochs // 2 + 1 the step size
    falls to a tenth and the momentum starts again from zero. The network is tested.
    kind glad (ImageNet-abcde, after GLaD): `epochs` epochs; the step size rises linearly in the first half and falls to
    zero by a cosine in the second; the weights' moving average over epochs is tested.
    epochs: None for DC's rule, 1000 where images are augmented and 300 where they are not. lr: the step size, None for
    GLaD's table. strategy: DSA per image, '' for none. dc_strategy: what DC's augmentation does instead.
    `for_network` fills in what depends on the network.
    """

    epochs: int | None
    lr: float | None
    batch: int
    strategy: str
    dc_strategy: str = ""
    kind: EvalProtocol = "dc"

    @classmethod
    def of(cls, options: DistillOptions) -> EvaluationProtocol:
        """The protocol that a distillation's options ask for."""
        lr = options.lr_net if options.eval_protocol == "dc" else None
        return cls(options.epoch_eval_train, lr, options.batch_train, options.strategy, kind=options.eval_protocol)

    def for_network(self, dataset: str, network: str) -> EvaluationProtocol:
        """This protocol for one of the evaluated networks.

        Where nothing else is said, step size and epochs follow the network, and without DSA kind dc augments the
        images of some as DC does.
        """
        dsa = bool(augment.parse_strategy(self.strategy))
        dc_strategy = "" if dsa or self.kind == "glad" else dc_augment.strategy_for(dataset, network)
        by_rule = AUGMENTED_EPOCHS if dsa or dc_strategy else PLAIN_EPOCHS
        epochs = by_rule if self.epochs is None else self.epochs
        lr = self.lr
        if lr is None:
            lr = next((each for name, each in GLAD_STEP_SIZES.items() if network.startswith(name)), GLAD_STEP_SIZE)
        return replace(self, epochs=epochs, lr=lr, dc_strategy=dc_strategy)

    @property
    def epochs_of_training(self) -> int:
        """Epochs that are run. Raises ValueError where `for_network` has yet to say."""
        if self.epochs is None:
            raise ValueError("The number of epochs depends on the network: for_network comes first.")
        return self.epochs + 1 if self.kind == "dc" else self.epochs

    def step_size(self, epoch: int) -> float:
        """The step size of an epoch, counted from 0. Raises ValueError where `for_network` has yet to say."""
        if self.lr is None or self.epochs is None:
            raise ValueError("The step size depends on the network: for_network comes first.")
        if self.kind == "dc":
            return self.lr if epoch < slow_from(self.epochs) else 0.1 * self.lr
        half = max(1, self.epochs // 2)
        if epoch <= half:
            return self.lr * (GLAD_FIRST + (1 - GLAD_FIRST) * epoch / half)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - half - 1) / half))

    def starts_anew(self, epoch: int) -> bool:
        """Whether the momentum is zero before an epoch: the first one, 0, and of kind dc the first slow one."""
        return epoch == 0 or (self.kind == "dc" and epoch == slow_from(self.epochs_of_training - 1))

    def as_metadata(self) -> dict[str, Any]:
        """The JSON form that a synthetic-set file carries."""
        defaults = (("dc_strategy", ""), ("kind", "dc"))
        return {key: value for key, value in asdict(self).items() if (key, value) not in defaults}


def train(
    network: nn.Module,
    data: TrainingSet,
    protocol: EvaluationProtocol,
    draws: torch.Generator,
    forward: Callable[[Tensor], Tensor] | None = None,
    check_stop: Callable[[], None] = lambda: None,
    on_epoch: Callable[[], object] = lambda: None,
) -> None:
    """Train `network` in place, so that it ends with the weights to test. Nothing waits for the device in an epoch.

    draws: a CPU generator for the order of images and the augmentation. forward: the network or its compiled form.
    check_stop may raise between steps; on_epoch is called after each epoch.
    """
    for optimizer in epochs(protocol, list(network.parameters()), list(network.buffers())):
        train_epoch(
            network,
            data,
            optimizer,
            protocol.batch,
            protocol.strategy,
            draws,
            forward,
            check_stop,
            protocol.dc_strategy,
        )
        on_epoch()


def epochs(
    protocol: EvaluationProtocol, parameters: Sequence[Tensor], buffers: Sequence[Tensor]
) -> Iterator[torch.optim.Optimizer]:
    """The optimiser for each epoch of a protocol, set to its step size; the caller trains for one epoch with each.

    parameters, buffers: those of one network, or of several stacked. After the last epoch they hold what is to be
    tested: with kind glad, the moving averages over epochs, of batch statistics as well as of weights.
    """
    current = [tensor.detach() for tensor in (*parameters, *buffers)]
    averages: list[Tensor] = []
    for epoch in range(protocol.epochs_of_training):
        lr = protocol.step_size(epoch)
        if protocol.starts_anew(epoch):
            optimizer = torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        optimizer.param_groups[0]["lr"] = lr
        yield optimizer
        if protocol.kind == "glad":
            if averages:
                _update_averages(averages, current, epoch)
            else:
                averages = [tensor.clone() for tensor in current]
    for tensor, average in zip(current, averages, strict=False):  # there are none of kind dc
        tensor.copy_(average)


@torch.no_grad()
def _update_averages(averages: Sequence[Tensor], current: Sequence[Tensor], count: int) -> None:
    """Add an epoch to averages over `count` epochs: plain means while those are few, later exponential averages."""
    weight = max(1 / (count + 1), 1 - GLAD_DECAY)
    for average, value in zip(averages, current, strict=True):
        if average.is_floating_point():
            average.lerp_(value, weight)
        else:  # how many batches BatchNorm has seen
            average.copy_(value)


def slow_from(epochs: int) -> int:
    """The first epoch, counted from 0, at a tenth of the step size: the authors' schedule for networks and experts."""
    return epochs // 2 + 2


def train_epoch(
    network: nn.Module,
    data: TrainingSet,
    optimizer: torch.optim.Optimizer,
    batch: int,
    strategy: str,
    draws: torch.Generator,
    forward: Callable[[Tensor], Tensor] | None = None,
    check_stop: Callable[[], None] = lambda: None,
    dc_strategy: str = "",
) -> None:
    """Train on every image once: cross-entropy, random order, DSA with one strategy per batch and parameters per image.

    The last batch may be smaller. The arguments are those of `train`; dc_strategy is DC's augmentation, on top of DSA.
    """
    forward = network if forward is None else forward
    device = data.labels.device
    network.train()
    order = torch.randperm(len(data.labels), generator=draws).to(device, non_blocking=True)
    for indices in order.split(batch):
        check_stop()
        images, labels = data.batch(indices), data.labels[indices]
        drawn = augment.sample(strategy, len(indices), draws, images.shape[2:], one_strategy=True, device=device)
        images = augment.apply(images, drawn)
        if dc_strategy:
            images = dc_augment.apply(
                images, dc_augment.sample(dc_strategy, len(images), draws, images.shape[1:], device=device)
            )
        loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, data: ImageData, forward: Callable[[Tensor], Tensor] | None = None) -> float | None:
    """Top-1 accuracy as a fraction; None for a network that diverged. The device is waited for once, at the end.

    A network has diverged if its weights, its buffers or its outputs are not finite. The largest of outputs that are
    NaN is the first, so such a network would otherwise seem to guess class 0 throughout.
    """
    network.eval()
    forward = network if forward is None else forward
    correct = torch.zeros((), dtype=torch.long, device=data.labels.device)
    finite = all_finite([*network.parameters(), *network.buffers()], data.labels.device)
    for indices in torch.arange(len(data.labels), device=data.labels.device).split(TEST_BATCH):
        logits = forward(data.batch(indices))
        correct += (logits.argmax(dim=1) == data.labels[indices]).sum()
        finite &= logits.isfinite().all()
    count, sound = torch.stack([correct, finite.long()]).tolist()
    return count / len(data.labels) if sound else None


def all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether no number in the tensors is NaN or infinite: bool [] on their device, for which nothing waits."""
    finite = torch.ones((), dtype=torch.bool, device=device)
    for tensor in tensors:
        finite &= tensor.detach().isfinite().all()
    return finite
