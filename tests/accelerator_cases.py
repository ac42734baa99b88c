"""What test_accelerator.py runs on a stand-in for an accelerator: `python tests/accelerator_cases.py FOLDER`.

The stand-in stays the accelerator of a process until it ends, so the cases have a process of their own. It writes
FOLDER/results.json: of each case what it counted, or why it was refused.
"""

import contextlib
import dataclasses
import json
import sys
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import launches
import ours
import several_gpus
import standin
import standin_device
from sizes import Size

from common import frequency
from common.codec.rate import shortest
from common.config.command_line import parse, parse_buffer
from common.config.options import BufferOptions
from common.datasets import load_dataset
from common.experts.folder import describe
from common.matching import augment, dc_augment, gradient
from common.matching.step_size import StepSize
from common.networks import build_network
from common.runs.pieces import rehearsal
from common.synset.packed import PackedArgs, PackedSet
from common.synset.selection import RULES, select
from common.synset.synset import SynSet
from common.system import devices
from common.system.files import load_torch, torch_bytes
from common.system.seeds import generator, seeded
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol
from DC import distill as dc
from DM import distill as dm
from TM import buffer
from TM import distill as tm

DEVICE = standin_device.register()
TINY = Size(
    side=16, depth=1, width=8, dm=(1, 64), dc=(1, 64), tm=(1, 64), per_class=8, syn_steps=2, published_steps=50,
    expert_images=9, test_images=9, classes=2, batch_real=4, batch_train=8, evaluation_epochs=1,
)  # fmt: skip
DIGITS = [
    "--dataset", "digits", "--model", "ConvNetD1W16", "--device", standin_device.NAME, "--eval_it", 0, "--num_eval", 1,
]  # fmt: skip
SCRIPTS = {"DM": dm, "DC": dc, "TM": tm}
PRECISIONS = ("tf32", "fp32", "bf16")
CASES = {}
FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()


def case(name):
    def add(function):
        CASES[name] = function
        return function

    return add


def twice(prepare, waits=0):
    """Make a step once, which fills caches, and then again, watched. Returns what was seen there."""
    with standin.StandIn() as there:
        step = prepare()
        step()
        with there.step(waits):
            step()
    return there


# -- steps, as the benchmarks prepare them ---------------------------------------------------------------------------


def class_by_class():
    with mock.patch.object(gradient, "default_chunk", return_value=None):
        return ours.dc(TINY, DEVICE, False)


# What a step waits for by intention: whether an expert's weights are finite, and the accuracy of a network.
STEPS = {
    "dm": (lambda: ours.dm(TINY, DEVICE, False), 0),
    "dc": (lambda: ours.dc(TINY, DEVICE, False), 0),
    "dc, class by class": (class_by_class, 0),
    "tm": (lambda: ours.tm(TINY, DEVICE, False), 0),
    "expert": (lambda: ours.expert(TINY, DEVICE, False), 1),
    "test": (lambda: ours.test_pass(TINY, DEVICE, False, graphs=False), 1),
    "evaluation of one network": (lambda: ours.evaluation(1, TINY, DEVICE, together=1), 1),
    "evaluation of three at once": (lambda: ours.evaluation(3, TINY, DEVICE, together=3), 1),
    "decode": (lambda: ours.decode(TINY, DEVICE), 0),
}
NETWORKS = STEPS.keys() - {"decode"}
for strategy in augment.STRATEGIES:
    STEPS[f"dsa {strategy} of a class"] = (partial(ours.augment_class, strategy, TINY, DEVICE), 0)
    STEPS[f"dsa {strategy} by image"] = (partial(ours.augment_each, strategy, TINY, DEVICE), 0)

# What is planted into a step, and refused.
FAULTS = {
    "a tensor on the CPU": lambda: on_device(3) + torch.ones(3),
    "a number that is waited for": lambda: on_device(3).sum().item(),
    "a copy that is waited for": lambda: torch.ones(3).to(DEVICE),
    "a copy from pageable memory": lambda: torch.ones(3).to(DEVICE, non_blocking=True),
}
# Where: what the step calls at its begin, so that it ends soon.
PLACES = {
    "test": (torch.Tensor, "argmax"),
    **dict.fromkeys(("dm", "dc", "dc, class by class", "tm", "decode"), (frequency, "inverse")),
}


def on_device(*shape):
    return torch.ones(shape, device=DEVICE)


def as_asked(precision, name, device):
    """The precision of a step that was prepared with another one."""
    return devices.precision(precision, device)


def watched(name):
    """A step in each precision: the types that networks compute in there. And with each fault: why it is refused."""
    prepare, waits = STEPS[name]
    types, refused = {}, {}
    with standin.StandIn() as there:
        step = prepare()
        # The stand-in has no tf32; what networks compute there is what they compute where there is.
        with mock.patch.object(devices, "has_tf32", return_value=True):
            for precision in PRECISIONS if name in NETWORKS else ("tf32", "fp32"):
                asked = partial(as_asked, precision)
                # The first time fills caches, which may wait.
                there.count_anew()
                allowed = there.step(waits) if types else contextlib.nullcontext()
                with (
                    mock.patch("common.runs.pieces.precision", asked),
                    mock.patch("common.training.pool.computing_in", asked),
                    devices.precision(precision, DEVICE),
                    allowed,
                ):
                    step()
                types[precision] = sorted(map(str, there.types))
        for fault, plant in FAULTS.items():
            with planted(name, plant, waits + 1):
                try:
                    with there.step(waits):
                        step()
                except standin.Refused as why:
                    refused[fault] = str(why)
    return {"types": types, "refused": refused}


@contextlib.contextmanager
def planted(name, plant, times):
    owner, attribute = PLACES.get(name, (augment, "apply"))
    wanted = getattr(owner, attribute)

    def faulty(*args, **kwargs):
        for _ in range(times):
            plant()
        return wanted(*args, **kwargs)

    with mock.patch.object(owner, attribute, faulty):
        yield


for step_name in STEPS:
    case(f"step: {step_name}")(partial(watched, step_name))


# -- the scripts, as they are ---------------------------------------------------------------------------------------


@case("script: experts")
def experts():
    options = parse_buffer(
        BufferOptions, "TM",
        [*map(str, [*DIGITS[:6], "--num_experts", 1, "--train_epochs", 1, "--buffer_path", FOLDER / "buffers",
                    "--cuda_graphs"])],
    )  # fmt: skip
    with standin.StandIn() as there:
        buffer.train_experts(options)
        graphs = there.by_name["graph"]
        train = load_dataset("digits")[0]
        known = dataclasses.replace(train, raw_fingerprint=train.fingerprint).to(DEVICE)
        with there.step():  # the images are not copied back
            describe(known, "ConvNetD1W16", build_network("ConvNetD1W16", 1, 10, (8, 8)))
    return {"graphs": graphs}


def updates(objective, flags, waits=0, count=2):
    """The first updates of a script, of which all after the first are watched."""
    words = [*map(str, [*DIGITS, *flags, "--save_path", FOLDER])]
    options, sources = parse(SCRIPTS[objective].Options, objective, words)
    losses = []
    with standin.StandIn() as there:

        def loop(run):
            for number in run.rehearse(count, lambda iteration, loss: losses.append(loss)):
                with there.step(waits) if number else contextlib.nullcontext():
                    yield number

        with rehearsal(loop):
            SCRIPTS[objective].distill(options, sources, objective)
    return {"launches": there.launches, "losses": len(losses), "graphs": there.by_name.get("graph", 0)}


BY_CLASS = ["--batch_real", 8]
FOLLOWING = [
    "--syn_steps", 3, "--max_start_epoch", 1, "--expert_epochs", 1, "--lr_teacher", 0.05,
    "--buffer_path", FOLDER / "buffers",
]  # fmt: skip
BN = ["--model", "ConvNetD1W16BN"]
UPDATES = {
    "DM": ("DM", BY_CLASS),
    "DM with batch statistics": ("DM", [*BY_CLASS, *BN]),
    "DC, trained between updates": ("DC", [*BY_CLASS, "--outer_loop", 2, "--inner_loop", 1]),
    "DC with batch statistics": ("DC", [*BY_CLASS, *BN]),
    "TM": ("TM", FOLLOWING),
    "TM, CUDA graphs": ("TM", [*FOLLOWING, "--cuda_graphs"]),
    "TM, plain": ("TM", [*FOLLOWING, "--unroll", "plain"]),
    "TM in batches and chunks": ("TM", [*FOLLOWING, "--batch_syn", 9, "--chunk", 5]),
}
for update_name, (objective, flags) in UPDATES.items():
    case(f"script: {update_name}")(partial(updates, objective, flags))


# -- sets: selection, decoding, checkpoints ---------------------------------------------------------------------------


@case("selection")
def selection():
    images = torch.randn(3, 5, 1, 8, 8)
    for float64 in (False, True):
        with standin.StandIn(float64):
            there = images.to(DEVICE)
            for rule in RULES:
                for transform in frequency.TRANSFORMS:
                    chosen = select(rule, [rows.split(2) for rows in there], 9, transform, generator(0, "rule"))
                    assert chosen.device.type == standin_device.NAME
                    assert chosen.shape == (3, 9)
    return {}


def a_set(transform="dct", optimizer="sgd"):
    args = ours_args(transform=transform, optimizer=optimizer, selection="variance", selection_images="init")
    synset = SynSet(args)
    return filled(synset)


def ours_args(**more):
    plain = {
        "channel": 3, "num_classes": 2, "im_size": (8, 8), "device": DEVICE, "ipc": 1, "msz_per_channel": 16,
        "lr_freq": 1.0, "mom_freq": 0.5, "seed": 0,
    }  # fmt: skip
    return type("Args", (), plain | more)


def filled(synset):
    labels = torch.arange(2).repeat_interleave(20)
    synset.init(torch.randn(40, 3, 8, 8).to(DEVICE), labels, [*torch.arange(40).split(20)])
    return synset


def packed(storage, **more):
    plain = {"lr_freq": 0.03, "mom_freq": 0.5, "bits_per_class": 6144, "storage": storage, "colour": "opponent"}
    return filled(PackedSet(PackedArgs(3, 2, (8, 8), DEVICE, 1, 16, **(plain | more))))


def update(synset):
    """One update of a set: all images, then some of them, back to the coefficients, and a step."""
    synset.optim_zero_grad()
    images = synset.decode()
    images.backward(torch.ones_like(images))
    some = synset.get(torch.arange(3, device=DEVICE))[0]
    some.backward(torch.ones_like(some))
    synset.optim_step()


SETS = {
    **{transform: lambda transform=transform: a_set(transform) for transform in frequency.TRANSFORMS},
    "adam": lambda: a_set(optimizer="adam"),
    "bf16": lambda: packed("bf16"),
    "int8": lambda: packed("int8"),
    "coded": lambda: packed("coded", num_per_class=6),
}


@case("sets")
def sets():
    """Of each kind an update, also of one that goes on from a checkpoint."""
    found = {}
    for name, make in SETS.items():
        path = FOLDER / "checkpoint.pt"
        with standin.StandIn() as there, unwatched_on_cpu():
            first, step_size = make(), StepSize(0.1, 1e-3, DEVICE)
            update(first)
            step_size.update(on_device(1)[0])
            state = {"set": first.state_dict(), "step_size": step_size.state_dict()}
            path.write_bytes(torch_bytes(tree_map(lambda each: each.cpu() if torch.is_tensor(each) else each, state)))
            read = load_torch(path)
            first.load_state_dict(read["set"])
            step_size.load_state_dict(read["step_size"])
            with there.step():
                update(first)
                step_size.update(on_device(1)[0])
        found[name] = [first.coefficients.device.type, step_size.value.device.type]
    return found


@contextlib.contextmanager
def unwatched_on_cpu():
    """The search for tables of codes is not watched where it is all on the CPU: that is most of a coded set's time."""

    def search(sums, more=None):
        watched = any(each.device.type != "cpu" for each in sums)
        with contextlib.nullcontext() if watched else _disable_current_modes():
            return shortest(sums, more)

    with contextlib.ExitStack() as patches:
        for place in ("quantise", "side"):
            patches.enter_context(mock.patch(f"common.codec.{place}.shortest", search))
        yield


@case("a coded set looks for its step")
def refresh():
    """Every ten updates it waits once, for the number of halvings; without float64 the CPU does all of it."""
    # One set is enough: how it looks for its step depends on what is set below.
    with standin.StandIn(), unwatched_on_cpu():
        synset = packed("coded", num_per_class=6, rate_weight=1.0)
        synset._updates = 9
        update(synset)
        synset.args.rate_weight, synset._updates = 0.0, 9
    with standin.StandIn(float64=True) as there:
        synset._exact_on, synset._code_bits = DEVICE, synset._code_bits.to(DEVICE)
        # Three of the tables, whose lengths are compared one after another.
        with mock.patch("common.codec.rate.TABLES", 3), there.step(waits=1):
            update(synset)
    return {"waits": there.waits}


# -- evaluations in other ways ----------------------------------------------------------------------------------------


def evaluation(*, together, model="ConvNetD1W8", soft=False, **more):
    protocol = EvaluationProtocol(**({"epochs": 0, "lr": 0.1, "batch": 8, "strategy": ""} | more))

    def once():
        images, labels = torch.randn(12, 1, 8, 8).to(DEVICE), (torch.arange(12) % 10).to(DEVICE)
        probabilities = torch.full((12, 10), 0.1).to(DEVICE) if soft else None
        data = Batches(images, labels, probabilities)
        test = load_dataset("digits")[1]
        test = dataclasses.replace(test, images=test.images[:9], labels=test.labels[:9]).to(DEVICE)
        pool = {model: EvaluationNetwork(build_network(model, 1, 10, (8, 8)).to(DEVICE))}
        return lambda: evaluate_pool(
            pool, lambda number: data, test, protocol, 2, 0, dataset="MNIST", together=together, progress=False
        )

    waits = 1 if together == 2 else 2
    return {"launches": twice(once, waits).launches}


EVALUATIONS = {
    "DC's augmentation": {"together": 2},
    # One by one: with networks stacked, torch's gradient of batch normalisation asserts on tensors that are fake.
    "batch statistics": {"together": 1, "model": "ConvNetD1W8BN", "strategy": "color_crop_cutout_flip_scale_rotate"},
    "soft labels": {"together": 2, "soft": True, "strategy": "flip"},
    "the averages of glad": {"together": 2, "kind": "glad", "epochs": 2, "strategy": "crop"},
    "cutmix": {"together": 1, "augmentation": "cutmix"},
    "mixup": {"together": 2, "augmentation": "mixup"},
}
for way, given in EVALUATIONS.items():
    case(f"evaluation with {way}")(partial(evaluation, **given))


@case("dc_augment")
def dc_augmentations():
    def once():
        images, draws = torch.randn(7, 1, 9, 8).to(DEVICE), generator(0, "draws")
        return lambda: [
            dc_augment.apply(images, dc_augment.sample(name, 7, draws, (1, 9, 8), device=DEVICE))
            for name in dc_augment.STRATEGIES
        ]

    return {"launches": twice(once).launches}


# -- the device -----------------------------------------------------------------------------------------------------


@case("device")
def device():
    found = {"auto": str(devices.resolve_device("auto"))}
    with standin.StandIn():
        found["float64"] = devices.lacks(DEVICE, torch.float64)
        found["exact"] = str(devices.exact(DEVICE))
        found["bf16"] = devices.lacks(DEVICE, torch.bfloat16)
        found["pins"] = devices.pins(DEVICE)
        parts = [torch.arange(3), torch.tensor(2.0), torch.tensor([[True, False]]), torch.empty(0)]
        moved = devices.all_to_device(parts, DEVICE)
        found["moved"] = [[str(each.dtype), list(each.shape)] for each in moved]
        with seeded(build_network("ConvNetD1W8", 1, 10, (8, 8)).to(DEVICE), 0, "dropout"):
            pass
    with standin.StandIn(float64=True):
        found["exact where it is there"] = str(devices.exact(DEVICE))
    found["pins outside"] = devices.pins(DEVICE)
    found["memory"] = [devices.free_memory(DEVICE), devices.total_memory(DEVICE), devices.reserved_memory(DEVICE)]
    found["peak"] = sorted(devices.peak_memory(DEVICE))
    found["hardware"] = devices.describe_hardware(DEVICE)["gpu"]
    return found


# -- counts ---------------------------------------------------------------------------------------------------------

case("network")(launches.alone)
for counted_name in launches.CASES:
    case(f"count: {counted_name}")(partial(lambda name: launches.counted(None, (name,))[name], counted_name))


@case("several processes")
def several():
    return several_gpus.predicted((1, 2), ("DM", "TM, one expert"), TINY)


def main():
    results = {}
    chosen = sys.argv[2:] or list(CASES)
    for name in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begun = time.process_time()
            try:
                results[name] = CASES[name]()
            except Exception:  # whatever it is, it is the result of this case
                results[name] = {"error": traceback.format_exc()}
        results[name]["seconds"] = round(time.process_time() - begun, 2)
        print(results[name]["seconds"], name, *(["failed"] if "error" in results[name] else []), flush=True)
        (FOLDER / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
