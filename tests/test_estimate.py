"""What a cell is said to cost is what its pieces cost when they are really computed, and what was measured."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.config.command_line import parse
from common.config.options import BufferOptions
from common.costs import costs, estimate
from common.costs.estimate import LIBRARIES, RATES, SHAPES, DataShape
from common.costs.meter import weigh
from common.datasets import load_dataset
from common.matching import distribution, gradient, trajectory
from common.matching.augment import sample
from common.networks import build_network
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from common.system.seeds import generator
from DC import distill as dc
from DM import distill as dm
from tests.conftest import ROOT
from TM import distill as tm

TINY = DataShape(3, (16, 16), 2, 40, 30, 20)
MODEL = "ConvNetD2"
CELL = {"model": MODEL, "ipc": 1, "msz_per_channel": 64, "lr_freq": 1.0}  # 4 images per class
MIB = 2**20


def estimated(objective, options, shape=TINY, **given):
    return estimate.estimate(objective, options, shape, device=given.pop("device", "cpu"), **given)


def network():
    return build_network(MODEL, TINY.channels, TINY.num_classes, TINY.im_size)


def synset():
    made = SynSet(SynSetArgs(3, 2, (16, 16), "cpu", 1, 64, 1.0, 0.5))
    made.init(torch.randn(8, 3, 16, 16), torch.arange(2).repeat_interleave(4), [range(4), range(4, 8)])
    return made


def counted(function):
    """FLOPs by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def through_images(match):
    """One update, from the coefficients and back to them, as the objectives make it."""

    def update():
        made = synset()
        images = made.decode()
        images.backward(match(images))
        made.optim_step()

    return update


# -- the pieces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 4, 12, 100])
def test_an_update_of_dm_costs_what_torch_counts(chunk):
    made, real = network().requires_grad_(False), torch.randn(12, 3, 16, 16)
    drawn = sample("flip", 2, generator(0, "augmentation"), TINY.im_size)
    update = through_images(lambda images: distribution.match(made.embed, real, images, 2, drawn, chunk)[1])
    options = dm.Options(**CELL, batch_real=6, chunk=chunk, Iteration=7)
    assert estimated("DM", options).distill_flops == pytest.approx(7 * counted(update), rel=0.02)


@pytest.mark.parametrize("chunk", [3, None, 6, 12])
def test_an_update_of_dc_costs_what_torch_counts(chunk):
    made, real = network(), torch.randn(12, 3, 16, 16)
    # As functions, for torch's counter refuses a derivative by a leaf that a module is called with.
    as_it_is = {"chunk": chunk if chunk == 3 else None, "compile": lambda function: function}
    update = through_images(lambda images: gradient.match(made, real, images, 2, **as_it_is)[1])
    options = dc.Options(**CELL, batch_real=6, chunk=chunk, Iteration=7, compile=True)
    assert estimated("DC", options).distill_flops == pytest.approx(7 * counted(update), rel=0.02)


def test_an_iteration_of_dc_trains_the_network_between_updates():
    once = estimated("DC", dc.Options(**CELL, Iteration=1)).distill_flops
    options = dc.Options(**CELL, Iteration=1, outer_loop=3, inner_loop=5)
    training = costs.training(MODEL, TINY, 8).flops
    found = estimated("DC", options).distill_flops
    assert found == pytest.approx(3 * once + 2 * 5 * 8 * training)


@pytest.mark.parametrize("unroll", ["adjoint", "plain"])
@pytest.mark.parametrize(("batch", "chunk"), [(0, 3), (0, 100), (5, 5)])
def test_an_update_of_tm_costs_what_torch_counts(batch, chunk, unroll):
    made = network()
    # As if compiled, because torch does not count derivatives with respect to a leaf.
    student = trajectory.build_student(made, lambda function: function)
    start = trajectory.flatten(made.parameters())
    labels, step_size = torch.arange(2).repeat_interleave(4), torch.tensor(0.1)
    steps = [trajectory.Step(torch.arange(batch) if batch else None)] * 4
    given = {"chunk": chunk, "unroll": unroll}
    update = through_images(
        lambda images: trajectory.match(student, start, start + 1, images, labels, step_size, steps, **given)[1]
    )
    options = tm.Options(**CELL, syn_steps=4, batch_syn=batch, chunk=chunk, unroll=unroll, Iteration=7)
    assert estimated("TM", options).distill_flops == pytest.approx(7 * counted(update), rel=0.05)


def test_multiples_of_a_forward_pass():
    """A convolution's pass is two products back, and each of these two more when it is differentiated again."""
    name, shape = "ConvNetD3", SHAPES["CIFAR10"]
    forward = costs.inference(name, shape, 4, 1).flops
    assert costs.training(name, shape, 4).flops == pytest.approx(3 * forward, rel=0.05)
    cell = costs.Workload(name, shape, 1, 256, "dct", 0)  # 40 images
    step = costs.tm_update(cell, 2, 100, "adjoint").flops - costs.tm_update(cell, 1, 100, "adjoint").flops
    assert step == pytest.approx((3 + 9) * 40 * forward, rel=0.05)  # less what the first layer need not give back
    many, few = (costs.dm_update(cell, real, 100).flops for real in (9, 5))
    assert many - few == pytest.approx(10 * 4 * forward, rel=0.01)


def test_memory_is_what_lives_at_the_same_time():
    def three():
        first = torch.empty(1000)
        second = first + 1
        del first
        return second * 2, second.view(10, 100)  # a view takes nothing

    assert weigh(three).bytes == 8000
    assert weigh(three).flops == 0
    assert weigh(lambda: torch.ones(4, 5) @ torch.ones(5, 6)).flops == 2 * 4 * 5 * 6


@pytest.mark.parametrize(
    ("measured", "side", "count", "steps", "chunk", "unroll"),
    [
        (577, 32, 160, 50, 32, "adjoint"),
        (467, 32, 160, 2, 32, "adjoint"),
        (1236, 32, 160, 50, 160, "adjoint"),
        (1146, 32, 160, 2, 160, "adjoint"),
        (1446, 32, 160, 2, 160, "plain"),
        (2334, 128, 80, 2, 32, "adjoint"),
    ],
)
def test_memory_of_trajectories_is_near_what_was_measured(measured, side, count, steps, chunk, unroll):
    """MiB of results/README.md, on a CPU core."""
    shape, model = (SHAPES["CIFAR10"], "ConvNetD3") if side == 32 else (SHAPES["imagenet-a"], "ConvNetD5")
    cell = costs.Workload(model, shape, 1, side * side * 10 // count, "dct", 0)
    assert cell.count == count
    told = (costs.tm_update(cell, steps, chunk, unroll).bytes + LIBRARIES) / MIB
    assert measured / 1.25 < told < 1.25 * measured


def test_the_rate_of_a_cpu_is_that_of_the_committed_measurement():
    measured = json.loads((ROOT / "results" / "steps_cpu.json").read_text(encoding="utf-8"))["results"]["dm_cifar10"]
    update = costs.dm_update(costs.Workload("ConvNetD3", SHAPES["CIFAR10"], 2, 64, "dct", 0), 256, 256)
    rate = update.flops / measured["chunks of 256, eager"]["median_s"] / 1e12
    assert RATES["cpu"][0] == pytest.approx(rate, rel=0.1)
    assert "assumed" in RATES["cuda"][1]


# -- a cell ----------------------------------------------------------------------------------------------------


def evaluation(**given):
    options = {**CELL, "Iteration": 100, "eval_it": 0, "num_eval": 1, "epoch_eval_train": 10, **given}
    return estimated("DM", dm.Options(**options)).evaluation_flops


def test_evaluations_are_counted_as_they_are_made():
    training, testing = costs.training(MODEL, TINY, 8).flops, costs.inference(MODEL, TINY, 30, 1).flops
    one = 11 * 8 * training + 30 * testing  # epochs + 1
    assert evaluation() == pytest.approx(2 * one)  # before the first and after the last update
    assert evaluation(Iteration=0) == pytest.approx(one)
    assert evaluation(eval_it=50) == pytest.approx(3 * one)
    assert evaluation(eval_it=40) == pytest.approx(4 * one)
    assert evaluation(num_eval=5) == pytest.approx(10 * one)
    assert evaluation(eval_protocol="glad") == pytest.approx(2 * (one - 8 * training))
    pool = evaluation(eval_mode="C")  # the network itself and ConvNet
    other = (pool - 2 * one) / 2
    assert other > 0
    assert evaluation(eval_mode="C", eval_it=50, wait_eval=True) == pytest.approx(3 * one + other)


def test_dc_trains_longer_on_augmented_images():
    plain, augmented = (
        estimated("DC", dc.by_method(dc.Options(**CELL, method=method, dsa_strategy="flip"))).evaluation_flops
        for method in ("DC", "DSA")
    )
    assert augmented / plain == pytest.approx(1001 / 301, rel=0.01)


def test_experts_are_added_when_asked_for():
    options = tm.Options(**CELL, syn_steps=2)
    alone = estimated("TM", options)
    both = estimated("TM", options, buffer=BufferOptions(model=MODEL, num_experts=3, train_epochs=5))
    training, testing = costs.training(MODEL, TINY, 40).flops, costs.inference(MODEL, TINY, 30, 1).flops
    assert alone.expert_flops == 0
    assert both.expert_flops == pytest.approx(3 * (5 * 40 * training + 30 * testing))
    assert both.flops - alone.flops == pytest.approx(both.expert_flops)
    tested = BufferOptions(model=MODEL, num_experts=1, train_epochs=5, keep_epochs=4, test_every=2)
    assert estimated("TM", options, buffer=tested).expert_flops == pytest.approx(4 * 40 * training + 2 * 30 * testing)


def test_memory_grows_with_what_is_held_at_a_time():
    shape = SHAPES["CIFAR10"]
    options = dm.Options(ipc=1, msz_per_channel=64, lr_freq=1.0)
    base = estimated("DM", options, shape, device="cuda").memory_bytes
    assert base > LIBRARIES + 60_000 * 3 * 32 * 32
    one_by_one = dataclasses.replace(options, networks_at_once=1, chunk=64)
    assert estimated("DM", one_by_one, shape, device="cuda").memory_bytes < base
    assert estimated("DM", options, shape).memory_bytes < base  # a CPU takes smaller pieces, and networks one by one
    whitened = estimated("DM", dataclasses.replace(options, zca=True), shape, device="cuda").memory_bytes
    assert whitened - base == 3 * 60_000 * 3 * 32 * 32
    alone = estimated("DM", dataclasses.replace(one_by_one, batch_syn=4), shape).distill_flops
    assert alone < estimated("DM", one_by_one, shape).distill_flops


def test_batch_statistics_need_whole_batches():
    for objective, options in (("DM", dm.Options), ("DC", dc.Options), ("TM", tm.Options)):
        steps = {"syn_steps": 1} if objective == "TM" else {}
        given = options(**{**CELL, "model": "ConvNetD2BN"}, **steps)
        assert estimated(objective, given).distill_flops > 0


def test_only_options_of_the_objective_are_taken():
    for objective in ("TM", "ImageNet-abcde/DC", "other"):
        with pytest.raises(ValueError, match=f"no options for the objective {objective}"):
            estimated(objective, dm.Options(**CELL))
    with pytest.raises(InputError, match="There is no network"):
        estimated("DM", dm.Options(**{**CELL, "model": "ConvNetX"}))


def test_shapes_of_the_digits():
    train, test = load_dataset("digits")
    smallest = min(len(indices) for indices in train.class_indices)
    found = DataShape(train.channels, train.im_size, train.num_classes, len(train), len(test), smallest)
    assert SHAPES["digits"] == found


# -- for people ------------------------------------------------------------------------------------------------


def test_seconds_are_flops_by_rate():
    told = estimate.Estimate(1e12, 2e12, 3e12, 10)
    assert told.flops == 6e12
    assert estimate.seconds(told, 2.0) == 3.0


def test_each_expert_of_an_update_costs_the_same():
    options, _ = parse(tm.Options, "TM", ["--dataset", "digits"])
    one, four = (
        estimate.estimate(
            "TM", dataclasses.replace(options, experts_per_iteration=count), SHAPES["digits"], device="cpu"
        )
        for count in (1, 4)
    )
    assert four.distill_flops == 4 * one.distill_flops
    assert four.memory_bytes == one.memory_bytes


def test_images_that_an_accelerator_keeps_normalised_are_told(monkeypatch):
    """In float32, which is 4 times their bytes; of the split that fits, and of a device of this machine."""
    cuda, shape = torch.device("cuda"), estimate.SHAPES["CIFAR10"]
    values = 3 * 32 * 32
    kept = {"cuda": 4 * 10_000 * values, "cpu": 0}
    for kind in ("cuda", "cpu"):
        monkeypatch.setattr(estimate, "accelerator", lambda kind=kind: None if kind == "cpu" else cuda)
        monkeypatch.setattr("common.images.image_data.total_memory", lambda device: 16 * 4 * 10_000 * values)
        told = dict(estimated("DM", dm.Options(**CELL), shape, device="cuda").parts)
        assert told["images"] == shape.data_bytes + kept[kind]
