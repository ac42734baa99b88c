"""Fill a buffer with the experts whose trajectories TM matches, one after another, as the options say."""

from __future__ import annotations

from dataclasses import asdict

import torch
from tqdm import tqdm

from common.config.checks import check_least
from common.config.options import BufferOptions
from common.experts.folder import buffer_folder, claimed, describe, filling, missing_experts, save_expert
from common.experts.train import ExpertProtocol, train_expert
from common.networks import build_network
from common.system import parallel
from common.system.devices import can_compile, check_precision, precision, resolve_device
from common.system.signals import Stoppable
from common.training.train import accuracy


def run(options: BufferOptions) -> None:
    """Train the experts that are missing; several processes share them.

    Raises InputError for what cannot work, Stopped after SIGINT and SIGTERM.
    """
    for key, least in (("num_experts", 1), ("test_every", 0), ("image_size", 1), ("workers", 1)):
        check_least(options, key, least)
    protocol = ExpertProtocol(
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
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    train, test = (part.to(device) for part in options.load())
    network = build_network(options.model, train.channels, train.num_classes, train.im_size).to(device)
    compiles = options.compile and can_compile(tqdm.write)
    forward = torch.compile(network) if compiles else network

    folder = buffer_folder(options.buffer_path, train.name, options.model, options.zca)
    made_for = describe(train, options.model, network)
    made_by = asdict(protocol) | {"precision": options.precision, "compile": compiles}
    epochs, accuracies = protocol.keep_epochs, dict[int, float]()
    work = Stoppable("stopping", "finished experts are kept, the same command trains the others")

    def after_epoch(done: int) -> None:
        bar.update()
        if done == epochs or (options.test_every and done % options.test_every == 0):
            accuracies[done] = accuracy(network, test, forward)

    def is_made(number: int, patiently: bool) -> bool:
        """Train an expert, unless another process does; whether it is there then. patiently: wait for that process."""
        with claimed(folder, number, shape, work.raise_if_stopped if patiently else None) as free:
            if free:
                bar.set_description(f"expert {number}")
                accuracies.clear()
                trajectory = train_expert(network, train, protocol, number, forward, work.raise_if_stopped, after_epoch)
                save_expert(folder, number, trajectory, accuracies)
                tested = ", ".join(f"{100 * each:.2f} % after {done} epochs" for done, each in accuracies.items())
                tqdm.write(f"expert {number}: {tested}")
                return True
        if options.wait and not patiently:
            return False
        tqdm.write(f"expert {number}: left to another process")
        bar.update(epochs)
        return True

    with filling(folder, made_for, made_by), work.catching_signals(), precision(options.precision, device):
        shape = (epochs + 1, made_for["parameter_count"])
        missing = parallel.broadcast(
            missing_experts(folder, options.num_experts, shape) if parallel.is_main() else None
        )
        there = options.num_experts - len(missing)
        tqdm.write(f"{there} of {options.num_experts} experts are in {folder}")
        ours = missing[parallel.rank() :: parallel.world()]
        with tqdm(
            total=(there + len(ours)) * epochs,
            initial=there * epochs,
            unit="epoch",
            dynamic_ncols=True,
            disable=not parallel.is_main(),
        ) as bar:
            for patiently in (False, True) if options.wait else (False,):
                ours = [number for number in ours if not is_made(number, patiently)]
