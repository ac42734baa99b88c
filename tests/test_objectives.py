"""DC and TM from their command lines: what they write, that they continue bit for bit, what they refuse."""

import itertools
import json
import os
import shutil
import signal

import pytest
import torch

from common.experts.buffer import ExpertOrder
from common.matching import gradient, trajectory
from common.matching.step_size import LEAST, StepSize
from common.synset.file import load_synset
from common.system.errors import InputError
from common.training.train import EvaluationProtocol
from tests.command_line import assert_refused, call

TINY = [
    "--dataset", "digits", "--model", "ConvNetD1W16", "--device", "cpu", "--num_eval", 1, "--epoch_eval_train", 1,
    "--eval_it", 0, "--name", "run",
]  # fmt: skip
EXPERTS, EPOCHS = 2, 4


@pytest.fixture(scope="module")
def buffers(tmp_path_factory):
    """Two experts of four epochs."""
    path = tmp_path_factory.mktemp("buffers")
    flags = ["--model", "ConvNetD1W16", "--num_experts", EXPERTS, "--train_epochs", EPOCHS, "--device", "cpu"]
    result = call("TM/buffer.py", *flags, "--buffer_path", path)
    assert result.code == 0, result.err
    return path


@pytest.fixture(scope="module")
def commands(buffers):
    """Script and flags of a run of a few seconds, and what computes its loss."""
    flags = ["--buffer_path", buffers, "--syn_steps", 2, "--max_start_epoch", 2, "--expert_epochs", 2]
    return {
        "DC": (["DC/distill.py", *TINY, "--batch_real", 16, "--Iteration", 4], gradient),
        "TM": (["TM/distill.py", *TINY, *flags, "--Iteration", 4], trajectory),
    }


def folder_of(path, objective):
    return path / objective / "digits" / "ipc1" / "run"


def outcome(folder):
    """All that a run leaves that does not tell the time."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for entry in metrics:
        entry.pop("seconds", None)
        entry.pop("measured", None)
    return (folder / "synset.safetensors").read_bytes(), metrics


@pytest.mark.parametrize("objective", ["DC", "TM"])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, commands, objective):
    words, module = commands[objective]
    assert call(*words, "--save_path", tmp_path / "straight").code == 0
    original, calls = module.match, []

    def stopping(*positional, **named):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*positional, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "match", stopping)
        assert call(*words, "--save_path", tmp_path / "stopped").code == 128 + signal.SIGTERM
    again = call(*words, "--save_path", tmp_path / "stopped")
    assert again.code == 0, again.err
    assert "resumed from iteration 3" in again.out
    straight, stopped = (outcome(folder_of(tmp_path / name, objective)) for name in ("straight", "stopped"))
    assert straight == stopped
    losses = [entry["loss"] for entry in straight[1] if "loss" in entry]
    assert len(losses) == 4
    assert all(loss > 0 for loss in losses)


@pytest.mark.parametrize("objective", ["DC", "TM"])
@pytest.mark.parametrize(
    "flags",
    [["--batch_syn", 1], ["--chunk", 3], ["--transform", "identity"], ["--zca"], ["--precision", "bf16"]],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_variants_run(tmp_path, commands, objective, flags):
    words, _ = commands[objective]
    if "--zca" in flags and objective == "TM":
        result = call(*words, *flags, "--save_path", tmp_path)
        assert_refused(result, "no experts in", "--zca")  # those that are there were trained on other images
        return
    result = call(*words, "--Iteration", 1, *flags, "--save_path", tmp_path)
    assert result.code == 0, result.err


# -- DC ----------------------------------------------------------------------------------------------------------


def test_dc_makes_the_loops_updates_with_the_network_trained_between(tmp_path, commands, monkeypatch):
    words, _ = commands["DC"]
    original, seen = gradient.match, []

    def recorded(network, *positional, **named):
        seen.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        return original(network, *positional, **named)

    monkeypatch.setattr(gradient, "match", recorded)
    flags = ["--outer_loop", 3, "--inner_loop", 1, "--Iteration", 2]
    assert call(*words, *flags, "--save_path", tmp_path).code == 0
    assert len(seen) == 6
    differ = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert all(differ)
    _, metrics = outcome(folder_of(tmp_path, "DC"))
    assert len([entry for entry in metrics if "loss" in entry]) == 2  # of an iteration, the mean over its updates


def test_batch_norm_is_matched_with_frozen_statistics(tmp_path, commands):
    words, _ = commands["DC"]
    for flags in ([], ["--chunk", 2]):
        result = call(
            *words, "--model", "ConvNetD1W16BN", "--Iteration", 1, *flags, "--save_path", tmp_path / str(len(flags))
        )
        assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("flags", "network", "strategy", "epochs"),
    [
        ([], "ConvNet", "", 300),
        ([], "ConvNetBN", "crop_noise", 1000),
        (["--dataset", "MNIST", "--recipe", "CIFAR10"], "ConvNet", "crop_scale_rotate", 1000),
        (["--method", "DSA"], "ConvNet", "", 1000),
        (["--method", "DSA"], "ConvNetBN", "", 1000),
        (["--method", "DSA", "--epoch_eval_train", 7], "ConvNet", "", 7),
    ],
)
def test_the_method_decides_on_augmentation_and_epochs(monkeypatch, flags, network, strategy, epochs):
    """The authors' rule, for every network that is evaluated: 1000 epochs with any augmentation, 300 without."""
    seen = []

    def set_up(options, sources, objective):
        seen.append(options)
        raise InputError("no data is read")

    monkeypatch.setattr("common.runs.loop.set_up", set_up)
    assert_refused(call("DC/distill.py", "--dataset", "CIFAR10", "--ipc", 2, *flags), "no data is read")
    (options,) = seen
    assert options.dsa == ("DSA" in flags)
    protocol = EvaluationProtocol.of(options).for_network(options.dataset, network)
    assert protocol.dc_strategy == strategy
    assert protocol.epochs == epochs
    assert protocol.epochs_of_training == epochs + 1


def test_real_images_are_trained_on_as_dc_trains(tmp_path):
    output = tmp_path / "result.json"
    flags = ["--baseline", "random", "--model", "ConvNetD1W16", "--num_eval", 1, "--ipc", 3, "--device", "cpu"]
    assert call("DC/evaluate.py", *flags, "--epoch_eval_train", 1, "--output", output).code == 0
    assert json.loads(output.read_text())["evaluation"]["strategy"] == ""


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ["--ipc", 3, "--msz_per_channel", 16, "--lr_freq", 1],
            ["DC has loops for ipc 1, 2, 10", "not 3", "--outer_loop"],
        ),
        (["--dsa", "True"], ["--dsa True contradicts --method DC"]),
        (["--dsa_strategy", "color"], ["--dsa_strategy is for --method DSA"]),
        (["--outer_loop", -1], ["--outer_loop -1 is too small"]),
    ],
    ids=str,
)
def test_dc_refuses(tmp_path, flags, parts):
    assert_refused(call("DC/distill.py", *TINY, *flags, "--save_path", tmp_path / "runs"), *parts)
    assert not (tmp_path / "runs").exists()


def test_dc_augmentation_is_for_networks_evaluated_without_dsa():
    without, with_dsa = EvaluationProtocol(1, 0.01, 8, "none"), EvaluationProtocol(1, 0.01, 8, "flip")
    assert without.for_network("MNIST", "ConvNet").dc_strategy == "crop_scale_rotate"
    assert without.for_network("CIFAR10", "ConvNetBN").dc_strategy == "crop_noise"
    assert without.for_network("CIFAR10", "ConvNet") == without
    with pytest.raises(ValueError, match="call for_network first"):
        assert EvaluationProtocol(None, 0.01, 8, "").epochs_of_training
    assert with_dsa.for_network("MNIST", "ConvNetBN") == with_dsa


# -- TM ----------------------------------------------------------------------------------------------------------


def test_the_learned_step_size_is_kept_and_evaluated_with(tmp_path, commands):
    words, _ = commands["TM"]
    flags = ["--lr_teacher", 0.05, "--lr_lr", 1e-4]
    assert call(*words, *flags, "--save_path", tmp_path).code == 0
    folder = folder_of(tmp_path, "TM")
    _, metadata = load_synset(folder / "synset.safetensors")
    assert metadata["step_size"] == metadata["accuracy"]["step_size"] != 0.05
    assert metadata["step_size"] >= LEAST
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["start"]["step_size"] == pytest.approx(0.05)
    output = tmp_path / "result.json"
    words = ["--synset", folder / "synset.safetensors", "--num_eval", 1, "--device", "cpu", "--output", output]
    assert call("TM/evaluate.py", *words).code == 0
    assert json.loads(output.read_text())["evaluation"]["lr"] == metadata["step_size"]
    # What files say of the evaluation is what was done.
    assert metadata["evaluation"]["lr"] == summary["evaluation"]["lr"] == metadata["step_size"]


def test_an_update_averages_over_its_experts(tmp_path, commands, monkeypatch):
    """The first of them is followed as an update of one expert follows it; the others come after it in the order."""
    words, _ = commands["TM"]
    original, calls, positions = trajectory.match, [], []

    def recorded(student, start, target, images, labels, step_size, steps, **named):
        result = original(student, start, target, images, labels, step_size, steps, **named)
        calls.append((start, steps, *(part.clone() for part in result)))
        return result

    position_of = ExpertOrder.expert
    monkeypatch.setattr(trajectory, "match", recorded)
    monkeypatch.setattr(
        ExpertOrder, "expert", lambda self, position: (positions.append(position), position_of(self, position))[1]
    )
    for count in (1, 3):
        flags = ["--experts_per_iteration", count, "--Iteration", 2, "--save_path", tmp_path / str(count)]
        assert call(*words, *flags).code == 0
    assert positions == [0, 1, *range(6)]
    (alone, _, *three) = calls[:5]
    for found, expected in zip(three[0], alone, strict=True):
        if isinstance(found, torch.Tensor):
            assert torch.equal(found, expected)
    draws = [[step.augmentation.strategies for step in steps] for _, steps, *_ in three]
    assert draws[0] == [step.augmentation.strategies for step in alone[1]]
    assert len({str(each) for each in draws}) == 3  # each has draws of its own
    _, metrics = outcome(folder_of(tmp_path / "3", "TM"))
    losses = [entry["loss"] for entry in metrics if "loss" in entry]
    assert losses[0] == pytest.approx(sum(float(each[2]) for each in three) / 3)
    state = torch.load(folder_of(tmp_path / "3", "TM") / "checkpoint.pt", weights_only=True)["state"]
    to_step_size = [sum(float(each[4]) for each in calls[2 + 3 * i : 5 + 3 * i]) / 3 for i in (0, 1)]
    momentum = state["step_size"]["optimizer"]["state"][0]["momentum_buffer"]
    assert float(momentum) == pytest.approx(0.5 * to_step_size[0] + to_step_size[1], rel=1e-4)


def stop_after(words, path, updates):
    """Start TM, and stop it in update number `updates`."""
    original, calls = trajectory.match, []

    def stopping(*positional, **named):
        calls.append(None)
        if len(calls) == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*positional, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory, "match", stopping)
        assert call(*words, "--save_path", path).code == 128 + signal.SIGTERM


def test_a_buffer_that_grows_or_moves_does_not_change_a_run(tmp_path, commands, buffers):
    words, _ = commands["TM"]
    assert call(*words, "--save_path", tmp_path / "straight").code == 0
    stop_after(words, tmp_path / "stopped", 1)
    moved = shutil.copytree(buffers, tmp_path / "buffers")
    folder = moved / "digits" / "ConvNetD1W16"
    expert = folder / "expert_0001.safetensors"
    shutil.copy(expert, folder / "expert_0002.safetensors")
    again = [*words, "--buffer_path", moved, "--save_path", tmp_path / "stopped"]
    hidden = expert.rename(tmp_path / "hidden")
    assert_refused(call(*again), "1 of the 2 experts that the run began with are missing")
    hidden.rename(expert)
    assert call(*again).code == 0
    straight, stopped = (folder_of(tmp_path / name, "TM") for name in ("straight", "stopped"))
    assert outcome(straight) == outcome(stopped)
    for name in ("config.json", "summary.json"):
        assert json.loads((stopped / name).read_text())["experts"] == EXPERTS


def test_a_run_is_not_continued_with_other_experts(tmp_path, commands):
    words, _ = commands["TM"]
    flags = ["--model", "ConvNetD1W16", "--num_experts", 2, "--train_epochs", EPOCHS, "--device", "cpu", "--seed", 1]
    assert call("TM/buffer.py", *flags, "--buffer_path", tmp_path / "others").code == 0
    stop_after(words, tmp_path, 1)
    for _ in ("stopped", "finished"):
        others = call(*words, "--buffer_path", tmp_path / "others", "--save_path", tmp_path)
        assert_refused(others, "has followed other experts than those in")
        assert call(*words, "--save_path", tmp_path).code == 0


def test_a_step_size_that_diverges_is_named(tmp_path, commands, monkeypatch):
    words, _ = commands["TM"]
    original = trajectory.match

    def diverging(*positional, **named):
        loss, gradient, _ = original(*positional, **named)
        return loss, gradient, torch.tensor(-float("inf"))

    monkeypatch.setattr(trajectory, "match", diverging)
    result = call(*words, "--Iteration", 1, "--lr_lr", 1e30, "--save_path", tmp_path)
    assert_refused(result, "the step size after 1 update is not finite", "--lr_lr (1e+30) or --lr_teacher")


def test_a_budget_of_memory_changes_no_bit_and_belongs_to_no_run(tmp_path, commands, monkeypatch):
    words, _ = commands["TM"]
    original, given, sets = trajectory.match, [], []

    def match(*positional, **named):
        given.append(named["memory"])
        return original(*positional, **named)

    monkeypatch.setattr(trajectory, "match", match)
    for budget in ("0", "0.5", None):
        flags = [] if budget is None else ["--memory_budget", budget]
        assert call(*words, "--Iteration", 1, *flags, "--save_path", tmp_path / str(budget)).code == 0
        sets.append((folder_of(tmp_path / str(budget), "TM") / "synset.safetensors").read_bytes())
    assert sets[0] == sets[1] == sets[2]
    assert given[0] == 0
    assert given[1] == 500_000_000
    assert given[-1] > 0  # half of what is free
    assert_refused(call(*words, "--memory_budget", "-1", "--save_path", tmp_path), "--memory_budget is -1", "gigabytes")
    for flags in (["--unroll", "plain"], ["--compile", "True"]):
        refused = call(*words, "--memory_budget", "1", *flags, "--save_path", tmp_path)
        assert_refused(refused, "--memory_budget has no use here", "leave it out")


def test_both_unrolls_make_the_same_updates(tmp_path, commands):
    words, _ = commands["TM"]
    sets = []
    for unroll in ("adjoint", "plain"):
        assert call(*words, "--Iteration", 1, "--unroll", unroll, "--save_path", tmp_path / unroll).code == 0
        sets.append(load_synset(folder_of(tmp_path / unroll, "TM") / "synset.safetensors"))
    (a, one), (b, other) = sets
    torch.testing.assert_close(a.coefficients, b.coefficients, rtol=1e-4, atol=1e-4)
    assert one["step_size"] == pytest.approx(other["step_size"], rel=1e-5)


def test_step_size_is_sgd_with_momentum_and_a_floor():
    step_size = StepSize(0.1, 0.5, torch.device("cpu"))
    step_size.update(torch.tensor(0.02))
    assert step_size.value.item() == pytest.approx(0.1 - 0.5 * 0.02)
    kept = step_size.state_dict()
    step_size.update(torch.tensor(0.02))
    assert step_size.value.item() == pytest.approx(0.09 - 0.5 * (0.5 * 0.02 + 0.02))
    again = StepSize(1.0, 0.5, torch.device("cpu"))
    again.load_state_dict(kept)
    again.update(torch.tensor(0.02))
    assert again.value == step_size.value
    step_size.update(torch.tensor(10.0))
    assert step_size.value.item() == pytest.approx(LEAST)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--buffer_path", "nowhere"], ["no experts in nowhere", "TM/buffer.py"]),
        (["--max_start_epoch", 4], ["have 4 epochs", "max_start_epoch - 1 + expert_epochs is 5"]),
        (["--model", "ConvNetD1W32"], ["no experts in"]),
        (["--syn_steps", 0], ["--syn_steps 0 is too small: give at least 1"]),
        (["--expert_epochs", 0], ["--expert_epochs 0 is too small: give at least 1"]),
        (["--experts_per_iteration", 0], ["--experts_per_iteration 0 is too small: give at least 1"]),
        (["--max_experts", 0], ["--max_experts 0 is too small: give at least 1"]),
        (["--lr_net", 0.1], ["--lr_net has no use in TM", "learned step size"]),
        (["--expert_epochs", -1], ["--expert_epochs -1 is too small"]),
        (["--lr_teacher", -0.1], ["--lr_teacher -0.1 must be positive"]),
        (["--lr_lr", "nan"], ["--lr_lr nan is not finite in float32"]),
        (["--lr_lr", 0], ["--lr_lr 0.0 must be positive"]),
        (["--lr_teacher", 1e39], ["--lr_teacher 1e+39 is not finite in float32"]),
        (["--model", "ConvNetD1W16BN", "--chunk", 2], ["leave out --chunk"]),
    ],
    ids=str,
)
def test_tm_refuses(tmp_path, commands, flags, parts):
    words, _ = commands["TM"]
    assert_refused(call(*words, *flags, "--save_path", tmp_path / "runs"), *parts)
    assert not (tmp_path / "runs").exists()


def test_tm_without_a_recipe_says_so(tmp_path, commands):
    """Of a value that nobody gave; --recipe MNIST has no cell of this budget."""
    words = ["TM/distill.py", "--recipe", "MNIST", "--ipc", 7, "--device", "cpu", "--save_path", tmp_path / "runs"]
    assert_refused(call(*words), "no recipe for TM on MNIST at ipc 7 says --syn_steps")
    given = ["--syn_steps", 2, "--max_start_epoch", 2]
    assert_refused(call(*words, *given), "no recipe for TM on MNIST at ipc 7 says --lr_lr")
