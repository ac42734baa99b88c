"""An expert is a function of its number: what it is trained on, in which order, and what is kept of it."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.experts.train import ExpertProtocol, expert_epochs, train_expert
from common.images.zca import whitened
from common.matching import augment
from common.matching.trajectory import flatten
from common.networks import build_network, reinitialise
from common.system.errors import InputError, Stopped
from common.system.seeds import derive, generator
from common.system.signals import Stoppable
from tests.image_sets import make_data

DSA = "color_crop_cutout_flip_scale_rotate"


def protocol(**changed):
    values = {
        "train_epochs": 2, "keep_epochs": 2, "batch_train": 8, "lr_teacher": 0.05, "mom": 0.0, "l2": 0.0,
        "decay": False, "dsa_strategy": DSA, "seed": 7,
    }  # fmt: skip
    return ExpertProtocol(**{**values, **changed})


def small_network(model="ConvNetD1W32"):
    return build_network(model, 3, 3, (4, 6))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"mom": 0.9, "l2": 0.01, "dsa_strategy": "none"},
        {"train_epochs": 6, "keep_epochs": 6, "decay": True, "mom": 0.5},
        {"train_epochs": 6, "keep_epochs": 6, "decay": False, "mom": 0.5},
    ],
    ids=str,
)
def test_trajectory_is_that_of_a_plain_loop(changed):
    """The loop of the authors' buffer.py, with our draws: the snapshots before and after each of its epochs."""
    data, asked, number = make_data(), protocol(**changed), 3
    network = small_network()
    reinitialise(network, derive(asked.seed, "expert", number))
    snapshots = [[p.detach().clone() for p in network.parameters()]]
    lr = asked.lr_teacher
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=asked.mom, weight_decay=asked.l2)
    for epoch in range(asked.train_epochs):
        draws = generator(asked.seed, "expert draws", number, epoch)
        order = torch.randperm(17, generator=draws)
        for indices in (order[:8], order[8:16], order[16:]):
            drawn = augment.sample(asked.dsa_strategy, len(indices), draws, (4, 6), one_strategy=True)
            loss = F.cross_entropy(network(augment.apply(data.batch(indices), drawn)), data.labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        snapshots.append([p.detach().clone() for p in network.parameters()])
        if asked.decay and epoch in [asked.train_epochs // 2 + 1]:
            lr *= 0.1
            optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=asked.mom, weight_decay=asked.l2)
    expected = torch.stack([torch.cat([tensor.flatten() for tensor in tensors]) for tensors in snapshots])
    assert torch.equal(train_expert(small_network(), data, asked, number), expected)


def test_decay_is_seen_only_in_the_last_epochs():
    steady, falling = (
        train_expert(small_network(), make_data(), protocol(train_epochs=6, keep_epochs=6, decay=decay), 0)
        for decay in (False, True)
    )
    assert torch.equal(steady[:6], falling[:6])
    assert not torch.equal(steady[6], falling[6])


def test_an_expert_is_a_function_of_its_number():
    """Whatever the network was before, and whichever experts were trained before."""
    data, used = make_data(), small_network()
    first, second = (train_expert(used, data, protocol(), number) for number in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1] - first[0], second[1] - second[0])
    assert torch.equal(train_expert(used, data, protocol(), 1), second)
    assert torch.equal(train_expert(small_network(), data, protocol(), 0), first)
    assert not torch.equal(train_expert(used, data, protocol(seed=8), 0), first)


def test_each_epoch_has_draws_of_its_own():
    """What an epoch draws does not depend on how many numbers the one before it took."""
    orders = [torch.randperm(17, generator=generator(7, "expert draws", 0, epoch)) for epoch in range(2)]
    assert not torch.equal(*orders)
    seen = []

    class Recorded:
        labels = make_data().labels

        def batch(self, indices):
            seen.append(indices)
            return make_data().batch(indices)

    train_expert(small_network(), Recorded(), protocol(batch_train=17), 0)
    assert torch.equal(torch.stack(seen), torch.stack(orders))


def test_kept_epochs_are_those_of_the_whole_trajectory():
    data = make_data()
    whole = train_expert(small_network(), data, protocol(train_epochs=6, keep_epochs=6, decay=True), 0)
    kept = train_expert(small_network(), data, protocol(train_epochs=6, keep_epochs=2, decay=True), 0)
    assert kept.shape == (3, whole.shape[1])
    assert torch.equal(kept, whole[:3])


def test_snapshots_do_not_share_memory():
    """On a CPU `p.detach().cpu()` is the parameter itself: all snapshots would be the last one."""
    network = small_network()
    trajectory = train_expert(network, make_data(), protocol(), 0)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(trajectory))
    before = trajectory.clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(trajectory, before)
    single = torch.nn.Linear(2, 2, bias=False)
    flat = flatten(single.parameters())
    assert flat.data_ptr() != single.weight.data_ptr()


def test_parameters_are_flat_in_their_order():
    network = small_network()
    expected = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    assert torch.equal(flatten(network.parameters()), expected)
    assert torch.equal(flatten(network.to(memory_format=torch.channels_last).parameters()), expected)


def test_batch_statistics_start_anew_with_each_expert():
    used = small_network("ConvNetD1W32BN")
    train_expert(used, make_data(), protocol(), 0)
    again = train_expert(used, make_data(), protocol(), 1)
    assert torch.equal(again, train_expert(small_network("ConvNetD1W32BN"), make_data(), protocol(), 1))


def test_global_random_states_are_left_alone():
    network, data = small_network(), make_data()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train_expert(network, data, protocol(), 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_whitened_images_are_trained_on(cache):
    raw = make_data()
    white, _ = whitened(raw, raw, progress=False)
    trajectory = train_expert(small_network(), white, protocol(), 0)
    plain = train_expert(small_network(), raw, protocol(), 0)
    assert torch.equal(trajectory[0], plain[0])
    assert not torch.allclose(trajectory[1], plain[1])
    assert trajectory.isfinite().all()


def test_testing_in_between_changes_nothing():
    network, data, trajectory = small_network("ConvNetD1W32BN"), make_data(), []
    for epoch, weights in expert_epochs(network, data, protocol(), 0):
        network.eval()
        assert epoch == len(trajectory)
        assert torch.equal(weights, flatten(network.parameters()))
        trajectory.append(weights)
    assert torch.equal(torch.stack(trajectory), train_expert(network, data, protocol(), 0))


def test_a_signal_ends_it_between_two_steps():
    work, steps = Stoppable("stopping", "finished experts are kept"), []

    def check():
        steps.append(None)
        if len(steps) == 5:
            work.received = 15
        work.raise_if_stopped()

    with pytest.raises(Stopped, match="stopped by SIGTERM: finished experts are kept") as stop:
        list(expert_epochs(small_network(), make_data(), protocol(), 0, on_batch=check))
    assert stop.value.exit_code == 143
    assert len(steps) == 5


def test_weights_that_are_not_finite_end_it():
    with pytest.raises(InputError, match=r"expert 4 are not finite after 1 epoch: lower --lr_teacher \(1e\+38\)"):
        train_expert(small_network(), make_data(), protocol(lr_teacher=1e38), 4)


@pytest.mark.cuda
def test_an_expert_of_a_gpu_is_kept_on_the_cpu():
    """The same draws as on a CPU, and so nearly the same weights."""
    data = make_data()
    there = train_expert(small_network().cuda(), data.to("cuda"), protocol(), 0)
    here = train_expert(small_network(), data, protocol(), 0)
    assert there.device.type == "cpu"
    assert torch.equal(there[0], here[0])
    assert torch.allclose(there, here, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"train_epochs": 0}, "--train_epochs 0 is too small"),
        ({"keep_epochs": 0}, "--keep_epochs 0 is too small"),
        ({"keep_epochs": 3}, "--keep_epochs 3 is more than the --train_epochs 2"),
        ({"batch_train": 0}, "--batch_train 0 is too small"),
        ({"lr_teacher": 0.0}, "--lr_teacher 0.0 must be positive"),
        ({"lr_teacher": -1.0}, "--lr_teacher -1.0 must be positive"),
        ({"lr_teacher": float("inf")}, "--lr_teacher inf is not finite"),
        ({"lr_teacher": float("nan")}, "--lr_teacher nan is not finite"),
        ({"mom": -0.1}, "--mom -0.1 is too small"),
        ({"mom": float("nan")}, "--mom nan is not finite"),
        ({"l2": -1.0}, "--l2 -1.0 is too small"),
        ({"seed": -1}, "--seed -1 is too small"),
        ({"dsa_strategy": "flip_turn"}, "'turn' in 'flip_turn' is not a DSA strategy"),
    ],
    ids=str,
)
def test_values_that_cannot_work_are_refused(changed, sentence):
    with pytest.raises(InputError, match=f"^{sentence}"):
        protocol(**changed)
