"""The authors' side: each function prepares the same piece of work as its namesake in ours.py, from their functions.

Their functions and classes come from a checkout (`checkout.load_checkout`); `code` holds the names of one of its
folders. The loops around them lie inside their main functions, which cannot be called in part, so they are rebuilt here
from a description: a loop over the classes, one backward pass through everything, one optimiser step. Time-based seeds
are replaced by a counter, and their printing and progress bars are swallowed.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from checkout import load_checkout
from ours import STILL
from sizes import Size, random_images, training_images
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.config.options import DSA_STRATEGY, BufferOptions, DistillOptions
from common.datasets import ImageData
from TM.distill import Options as TMOptions

Run = Callable[[], object]
Code = dict[str, Any]

TEST_BATCH = 256  # of the test loaders of DM and DC


@lru_cache
def code_of(path: Path, folder: str, gpu: bool) -> Code:
    """The names of one folder of the checkout; the checkout is loaded once."""
    return _checkout(path, gpu)[folder]


@lru_cache
def _checkout(path: Path, gpu: bool) -> dict[str, Code]:
    return load_checkout(path, gpu)


# -- selecting, decoding, augmenting -----------------------------------------------------------------------------


def selection(code: Code, size: Size, device: torch.device) -> Run:
    """Choose the positions of one class, and save the masks of all; their picture of the masks is not drawn."""
    synset = _synset(code, size, size.tm, device)
    del synset.init_mask  # which had been replaced; this is the class's own again
    synset.num_classes = 1
    drawing = SimpleNamespace(imshow=_nothing, savefig=_nothing, close=_nothing)
    synset.init_mask.__globals__["plt"] = drawing

    def once() -> None:
        with _quiet():
            synset.init_mask()

    return once


def decode(code: Code, size: Size, device: torch.device) -> Run:
    """Decode TM's whole set, and backpropagate from the images to the coefficients."""
    synset = _synset(code, size, size.tm, device)
    ones = torch.ones_like(synset.get()[0])

    def once() -> None:
        synset.optim_zero_grad()
        synset.get()[0].backward(ones)

    return once


def augment_class(strategy: str, code: Code, size: Size, device: torch.device) -> Run:
    """Augment the images of a class alike: m real ones, and n synthetic ones with their gradient."""
    images = _floats(training_images(size, device))[0]
    real = images[: size.batch_real]
    synthetic = images[: size.per_class_synthetic(size.dm)].clone().requires_grad_()
    ones, param, seeds = torch.ones_like(synthetic), code["ParamDiffAug"](), count()

    def once() -> None:
        seed = next(seeds)
        code["DiffAugment"](real, strategy, seed=seed, param=param)
        augmented = code["DiffAugment"](synthetic, strategy, seed=seed, param=param)
        torch.autograd.grad(augmented, synthetic, ones)

    return once


def augment_each(strategy: str, code: Code, size: Size, device: torch.device) -> Run:
    """Augment a batch to train a network on, each image by parameters of its own."""
    images = _floats(training_images(size, device))[0][: size.batch_train]
    param = code["ParamDiffAug"]()
    return lambda: code["DiffAugment"](images, strategy, param=param)


# -- one update ----------------------------------------------------------------------------------------------------


def dm(code: Code, size: Size, device: torch.device) -> Run:
    """One update of DM with a new network: class by class, and one backward pass through the sum."""
    synset = _synset(code, size, size.dm, device)
    images, rows = _floats(training_images(size, device))
    param, seeds = code["ParamDiffAug"](), count()

    def update() -> None:
        network = _network(code, size, device).requires_grad_(False)
        total = torch.zeros((), device=device)
        for c in range(size.classes):
            there = code["get_images"](images, rows, c, size.batch_real)
            here = synset.get(indices=_of_class(c, synset))[0]
            seed = next(seeds)
            there, here = (code["DiffAugment"](x, DSA_STRATEGY, seed=seed, param=param) for x in (there, here))
            target = network.embed(there).detach().mean(dim=0)
            total = total + (target - network.embed(here).mean(dim=0)).square().sum()
        _step(synset, total)

    return update


def dc(code: Code, size: Size, device: torch.device) -> Run:
    """One update of DC with a new network: class by class, and one backward pass through the sum."""
    synset = _synset(code, size, size.dc, device)
    images, rows = _floats(training_images(size, device))
    args = SimpleNamespace(device=device, dis_metric="ours")

    def update() -> None:
        network = _network(code, size, device)
        parameters = list(network.parameters())
        total = torch.zeros((), device=device)
        for c in range(size.classes):
            there = code["get_images"](images, rows, c, size.batch_real)
            here, labels = synset.get(indices=_of_class(c, synset))
            on_real = F.cross_entropy(network(there), torch.full((len(there),), c, device=device))
            target = [g.detach().clone() for g in torch.autograd.grad(on_real, parameters)]
            on_synthetic = F.cross_entropy(network(here), labels)
            own = torch.autograd.grad(on_synthetic, parameters, create_graph=True)
            total = total + code["match_loss"](own, target, args)
        _step(synset, total)

    return update


def tm(code: Code, size: Size, device: torch.device, anomalies: bool) -> Run:
    """One update of TM: every step of a new student stays in one graph. anomalies: autograd looks for NaN, as shipped.

    The expert's weights are in memory, a list of tensors at each of two epochs.
    """
    synset = _synset(code, size, size.tm, device)
    start = [p.detach() for p in _network(code, size, device).parameters()]
    end = [p * 0.99 for p in start]
    param, step_size = code["ParamDiffAug"](), torch.tensor(TMOptions.lr_teacher, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([step_size], lr=STILL, momentum=0.5)

    def update() -> None:
        student = code["ReparamModule"](_network(code, size, device)).train()
        first, target = (torch.cat([p.to(device).reshape(-1) for p in each]) for each in (start, end))
        images, labels = synset.get()
        theta = first.clone().requires_grad_()
        for _ in range(size.syn_steps):
            rows = torch.randperm(len(images))
            batch = code["DiffAugment"](images[rows], DSA_STRATEGY, param=param)
            loss = F.cross_entropy(student(batch, flat_param=theta), labels[rows])
            theta = theta - step_size * torch.autograd.grad(loss, theta, create_graph=True)[0]
        moved, wanted = (F.mse_loss(each, target, reduction="sum") for each in (theta, first))
        optimizer.zero_grad()
        _step(synset, moved / wanted)
        optimizer.step()
        step_size.data = step_size.data.clip(min=0.001)

    def as_asked() -> None:
        with torch.autograd.set_detect_anomaly(anomalies):
            update()

    return as_asked


# -- training and testing networks ---------------------------------------------------------------------------------


def expert(code: Code, size: Size, device: torch.device) -> Run:
    """Train an expert on a part of an epoch."""
    loader = _loader(code, size, size.expert_images, size.batch_train, shuffle=True)
    args = _args(code, size, device)

    def once() -> None:
        network = _network(code, size, device)
        optimizer = torch.optim.SGD(network.parameters(), lr=BufferOptions.lr_teacher)
        code["epoch"]("train", loader, network, optimizer, nn.CrossEntropyLoss(), args, aug=True)

    return once


def test_pass(code: Code, size: Size, device: torch.device) -> Run:
    """Test one network on normalised images in memory. Their decoding of image files, at every test, is not timed."""
    loader = _loader(code, size, size.test_images, TEST_BATCH)
    network, args = _network(code, size, device), _args(code, size, device)
    return lambda: code["epoch"]("test", loader, network, None, nn.CrossEntropyLoss(), args, aug=False)


def test_batches(code: Code, size: Size, device: torch.device) -> Run:
    """Make the batches of a test from normalised images in memory, without a network."""
    loader = _loader(code, size, size.test_images, TEST_BATCH)
    return lambda: [images.float().to(device) for images, _ in loader]


def evaluation(networks: int, code: Code, size: Size, device: torch.device) -> Run:
    """Train networks on TM's set, one by one, and test them on a single image."""
    synset, args = _synset(code, size, size.tm, device), _args(code, size, device)
    one = _loader(code, size, 1, 1)

    def once() -> None:
        for number in range(networks):
            images, labels = synset.get(need_copy=True)
            with _quiet():
                code["evaluate_synset"](number, _network(code, size, device), images, labels, one, args)

    return once


# -- what the functions take ---------------------------------------------------------------------------------------


def _network(code: Code, size: Size, device: torch.device) -> Any:
    """A new ConvNet in training mode, with their norm, activation and pooling of every published run."""
    network = code["ConvNet"](
        3, size.classes, size.width, size.depth, "relu", "instancenorm", "avgpooling", size.im_size
    )
    return network.to(device).train()


def _synset(code: Code, size: Size, budget: tuple[int, int], device: torch.device) -> Any:
    """Their synthetic set, which keeps the first k coefficients: their own choice would take minutes."""
    ipc, k = budget
    args = SimpleNamespace(
        log_path=_folder() / "log.txt", save_path=_folder(), channel=3, num_classes=size.classes, im_size=size.im_size,
        device=device, ipc=ipc, msz_per_channel=k, lr_freq=STILL, mom_freq=DistillOptions.mom_freq,
    )  # fmt: skip
    synset = code["SynSet"](args)
    synset.init_mask = synset.show_budget = _nothing
    images, rows = _floats(training_images(size, device))
    with _quiet():
        synset.init(images, None, rows)
    synset.mask.flatten(2)[:, :, :k] = 1
    return synset


def _step(synset: Any, loss: Tensor) -> None:
    synset.optim_zero_grad()
    loss.backward()
    synset.optim_step()
    loss.item()  # which they add up to print it


def _of_class(c: int, synset: Any) -> range:
    return range(c * synset.num_per_class, (c + 1) * synset.num_per_class)


def _args(code: Code, size: Size, device: torch.device) -> SimpleNamespace:
    return SimpleNamespace(
        device=device, dataset="CIFAR10", dsa=True, dsa_strategy=DSA_STRATEGY, dsa_param=code["ParamDiffAug"](),
        lr_net=DistillOptions.lr_net, epoch_eval_train=size.evaluation_epochs, batch_train=size.batch_train,
        log_path=_folder() / "log.txt",
    )  # fmt: skip


def _loader(code: Code, size: Size, count: int, batch: int, shuffle: bool = False) -> DataLoader:
    """Batches of `count` normalised images, which lie on the CPU, in this process."""
    data = random_images(size, count, torch.device("cpu"))
    images = code["TensorDataset"](data.batch(slice(None)), data.labels)
    return DataLoader(images, batch_size=batch, shuffle=shuffle, num_workers=0)


@lru_cache
def _floats(data: ImageData) -> tuple[Tensor, list[list[int]]]:
    """Normalised images, float32 [N, 3, side, side], and the list of each class's rows, as they hold a training set."""
    return data.batch(slice(None)), [rows.tolist() for rows in data.class_indices]


def _folder() -> Path:
    """A folder for what their functions write; it is removed when Python ends."""
    return Path(_temporary().name)


@lru_cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@contextmanager
def _quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _nothing(*_: object, **__: object) -> None:
    pass
