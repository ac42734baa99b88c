"""Train the experts whose trajectories TM matches: `python TM/buffer.py --help`.

An expert is a network that is trained on the real images. Its trajectory, the weights after every epoch, is saved.

python TM/buffer.py --num_experts 5 --train_epochs 20   uses the built-in digits, two minutes on a CPU
sh TM/scripts/run_buffer.sh                             trains 100 experts for 50 epochs on CIFAR-10, as published;
                                                        meant for a GPU

If the command was stopped, or even killed, the same command trains the experts that are missing. If it is started
twice at the same time, the two processes share the experts between them.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import math
from dataclasses import asdict, fields, replace

import torch
from tqdm import tqdm

from common.config.command_line import parse_buffer_with_sources
from common.config.options import BufferOptions, DataOptions, Sources
from common.config.rule import with_network
from common.config.validation import ValidationOptions
from common.costs.forecast import say_forecast_experts
from common.costs.memory import check_memory
from common.experts.folder import buffer_folder, claimed, describe, filling, missing_experts, save_expert
from common.experts.train import check_experts, expert_epochs
from common.networks import build_network, has_dropout
from common.networks.graphs import can_capture, graphed_forward
from common.preview.dry_buffer import dry_run
from common.recipes.shapes import DataShape, known_shape
from common.system import parallel
from common.system.command import run_command
from common.system.devices import can_compile, precision
from common.system.progress import Progress
from common.system.signals import Stoppable
from common.system.text import counted, percent
from common.terminal.next_step import to_distill
from common.training.train import accuracy, batches_of_test, gradients_of


def train_experts(options: BufferOptions) -> None:
    """Train the experts that are missing from the buffer; several processes divide them among them.

    Raises InputError for options that cannot work, and Stopped after SIGINT or SIGTERM.
    """
    protocol, device = check_experts(options)
    known = known_shape(options.dataset, options.image_size)
    if known is not None:
        check_memory("TM", options, known, device, loaded=False)
    train, test = options.load()
    # `describe` tells the images by their fingerprint. Here they are still on the CPU, and need not be copied back.
    train = replace(train, raw_fingerprint=train.fingerprint)
    train, test = train.to(device), test.to(device)
    options = with_network(options, train.im_size)
    if known is None:
        check_memory("TM", options, DataShape.of(train, test), device, loaded=True)
    train, held = options.hold_back(train)
    test = test if held is None else held  # what is chosen by the experts' curve has not seen the test images
    network = build_network(options.model, train.channels, train.num_classes, train.im_size).to(device)
    compiles = options.compile and can_compile()
    forward = torch.compile(network) if compiles else network
    graphs = options.cuda_graphs and can_capture(device) and not has_dropout(network)
    gradients = gradients_of(network, forward, device) if graphs else None
    tested_by = graphed_forward(forward, device) if graphs else forward

    folder = buffer_folder(options.buffer_path, train.name, options.model, options.zca)
    made_for = describe(train, options.model, network, options.validation)
    made_by = asdict(protocol) | {"precision": options.precision, "compile": compiles}
    epochs, shape = protocol.keep_epochs, (protocol.keep_epochs + 1, made_for["parameter_count"])
    every = options.test_every or epochs
    tested = {*range(every, epochs, every), epochs}  # numbers of epochs after which an expert is tested
    in_tests = len(tested) * batches_of_test(len(test), test.im_size)
    batches = epochs * math.ceil(len(train) / protocol.batch_train) + in_tests  # of one
    work = Stoppable("stopping", "finished experts are kept, the same command trains the others")

    with filling(folder, made_for, made_by), work.catching_signals(), precision(options.precision, device):
        missing = missing_experts(folder, options.num_experts, shape) if parallel.is_main() else None
        missing = parallel.broadcast(missing)
        there, left = options.num_experts - len(missing), missing[parallel.rank() :: parallel.world()]
        tqdm.write(f"{there} of {options.num_experts} experts are in {folder}")
        say_forecast_experts(options, train, test, len(missing), folder)
        with Progress(
            total=(there + len(left)) * batches,
            initial=there * batches,
            desc="experts",
            unit="batch",
            disable=not parallel.is_main(),
        ) as bar:

            def after_batch() -> None:
                bar.update()
                work.raise_if_stopped()

            # Experts that other processes are training are skipped. With --wait, a second round waits for them.
            for patiently in (False, True) if options.wait else (False,):
                numbers, left = left, []
                for number in numbers:
                    with claimed(folder, number, shape, work.raise_if_stopped if patiently else None) as free:
                        if free:
                            bar.set_description(f"expert {number}")
                            work.doing = f"a batch of expert {number}"
                            training = expert_epochs(network, train, protocol, number, forward, after_batch, gradients)
                            trajectory = torch.empty(shape, dtype=torch.float32)
                            accuracies = dict[int, float | None]()
                            for epoch, weights in training:  # weights [P] after 0, 1, ... epochs
                                trajectory[epoch] = weights
                                if epoch in tested:
                                    accuracies[epoch] = accuracy(network, test, tested_by, after_batch)
                            save_expert(folder, number, trajectory, accuracies)
                            told = ", ".join(
                                f"{_told(each)} after {counted(e, 'epoch')}" for e, each in accuracies.items()
                            )
                            tqdm.write(f"expert {number}: {told}")
                    if not free and options.wait and not patiently:
                        left.append(number)
                    elif not free:
                        tqdm.write(f"expert {number}: left to another process")
                        bar.update(batches)


def _told(accuracy: float | None) -> str:
    # Weights are finite here, but outputs may overflow.
    return "no finite outputs" if accuracy is None else f"{percent(accuracy)} %"


def main(kind: type[BufferOptions] = BufferOptions, objective: str = "TM") -> None:
    """Run the command line. ImageNet-abcde passes a `kind` of options with other defaults."""
    options, sources = parse_buffer_with_sources(kind, objective)
    if options.dry_run:
        dry_run(options, sources)
    else:
        train_experts(options)
        if parallel.is_main():
            tqdm.write(to_distill(objective, *_shared_flags(options, sources)))


def _shared_flags(options: BufferOptions, sources: Sources) -> list[str]:
    """The flags of this command that the student needs, too: those about the images, the network and the folder."""
    shared = {field.name for kind in (DataOptions, ValidationOptions) for field in fields(kind)}
    given = [key for key in vars(options) if key in shared | {"model", "buffer_path"} and sources[key] == "flag"]
    return [word for key in given for word in (f"--{key}", str(getattr(options, key)))]


if __name__ == "__main__":
    run_command(main, several=True)
