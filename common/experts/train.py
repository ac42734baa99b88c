"""Trains expert networks for trajectory matching on real images and keeps their weights after every epoch.

Weights are one vector [P]: all P parameters of the network, in the order of network.parameters().
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.config.checks import check_least, check_numbers, check_positive
from common.config.options import BufferOptions
from common.datasets.folder import said_first
from common.images.pixels import check_side
from common.matching.augment import parse_strategy
from common.matching.trajectory import flatten
from common.networks import reinitialise
from common.networks.graphs import Gradients
from common.system.devices import check_precision, resolve_device
from common.system.errors import InputError
from common.system.seeds import derive, generator, seeded
from common.system.text import counted
from common.training.train import TrainingSet, are_finite, sgd, slow_from, train_epoch

MOST_EXPERTS = 1_000_000
"""The authors train 100."""


def check_experts(options: BufferOptions) -> tuple[ExpertProtocol, torch.device]:
    """The protocol and the device of a buffer's options. Raises InputError for options that cannot work.

    A fault of a folder of images is told first.
    """
    with said_first(options.dataset):
        for key, least in (("num_experts", 1), ("test_every", 0), ("workers", 1)):
            check_least(options, key, least)
        if options.image_size is not None:
            check_side(options.image_size)
        if options.num_experts > MOST_EXPERTS:
            raise InputError(f"--num_experts {options.num_experts} is too large: give {MOST_EXPERTS:,} at most")
        options.check_validation()
        protocol, device = ExpertProtocol.of(options), resolve_device(options.device)
        check_precision(options.precision, device)
        options.check_images()
    return protocol, device


@dataclass(frozen=True)
class ExpertProtocol:
    """How experts are trained: SGD on the cross-entropy loss, with DSA parameters drawn per image.

    The fields have the names of the command-line options. decay: whether, as in the authors' code, the learning rate
    falls to a tenth after epoch train_epochs // 2 + 1, counted from 0; the momentum is then reset to zero. keep_epochs:
    training ends after this many epochs, while the schedule is that of train_epochs epochs.
    Raises InputError for values that cannot work.
    """

    train_epochs: int
    keep_epochs: int
    batch_train: int
    lr_teacher: float
    mom: float
    l2: float
    decay: bool
    dsa_strategy: str
    seed: int

    @classmethod
    def of(cls, options: BufferOptions) -> ExpertProtocol:
        """The protocol for the options of a buffer."""
        return cls(
            train_epochs=options.train_epochs,
            keep_epochs=options.train_epochs if options.keep_epochs is None else options.keep_epochs,
            batch_train=options.batch_train,
            lr_teacher=options.lr_teacher,
            mom=options.mom,
            l2=options.l2,
            decay=options.decay,
            dsa_strategy=options.strategy,
            seed=options.seed,
        )

    def __post_init__(self) -> None:
        for key in ("train_epochs", "keep_epochs", "batch_train"):
            check_least(self, key, 1)
        for key in ("mom", "l2", "seed"):
            check_least(self, key, 0)
        if self.keep_epochs > self.train_epochs:
            raise InputError(
                f"--keep_epochs {self.keep_epochs} is more than the --train_epochs {self.train_epochs} "
                "that there are: lower it, or leave it out to keep them all"
            )
        check_numbers(self)
        check_positive(self, "lr_teacher")
        parse_strategy(self.dsa_strategy)


def expert_epochs(
    network: nn.Module,
    data: TrainingSet,
    protocol: ExpertProtocol,
    number: int,
    forward: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[], object] = lambda: None,
    gradients: Gradients | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Train expert `number`; yield (0, its initial weights), then (epochs trained, weights) after each epoch.

    The weights are float32 [P] on the device of the network. `network` must be on the device of the data. It gets new
    initial weights and is trained in place; between two epochs the caller may use it, but must not change it.
    The weights depend only on the data, the protocol and the number. A smaller keep_epochs gives the beginning of the
    same trajectory. The global random state is not changed.
    forward: the compiled network, or None to call `network` itself. on_batch is called after every step, and may raise.
    gradients: as for `train_epoch`.
    Raises InputError as soon as a weight is not finite.
    """
    reinitialise(network, derive(protocol.seed, "expert", number))
    yield 0, flatten(network.parameters())
    for epoch in range(protocol.keep_epochs):
        if epoch == 0 or (protocol.decay and epoch == slow_from(protocol.train_epochs)):
            lr = protocol.lr_teacher if epoch == 0 else 0.1 * protocol.lr_teacher
            optimizer = sgd(list(network.parameters()), lr, protocol.mom, protocol.l2)
        draws = generator(protocol.seed, "expert draws", number, epoch)
        with seeded(network, protocol.seed, "expert dropout", number, epoch):
            train_epoch(
                network,
                data,
                optimizer,
                protocol.batch_train,
                protocol.dsa_strategy,
                draws,
                forward,
                on_batch,
                gradients=gradients,
            )
        weights = flatten(network.parameters())
        if not are_finite(weights, 0):
            raise InputError(
                f"the weights of expert {number} are not finite after {counted(epoch + 1, 'epoch')}: "
                f"lower --lr_teacher ({protocol.lr_teacher:g})"
            )
        yield epoch + 1, weights


def train_expert(network: nn.Module, data: TrainingSet, protocol: ExpertProtocol, number: int) -> Tensor:
    """Train expert `number` and return its trajectory, float32 [keep_epochs + 1, P] on the CPU.

    Row e holds the weights after e epochs. Raises the same errors as `expert_epochs`.
    """
    return torch.stack([weights.cpu() for _, weights in expert_epochs(network, data, protocol, number)])
