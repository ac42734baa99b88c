"""What is told before a run: --dry_run, --find_lr, the line of estimate, and memory that is not there."""

import json

import pytest
import torch

from common.config.command_line import parse
from common.config.options import BufferOptions
from common.config.sets import new_set
from common.costs.estimate import LIBRARIES, SHAPES, DataShape, estimate
from common.costs.forecast import Forecast, forecast, needs_of, peak_of
from common.costs.speed import Speed, measure
from common.preview.step_search import FACTOR, FILE, PICTURE
from common.recipes.shapes import known_shape
from common.report.record import read_metrics
from common.system import devices
from DM import distill as dm
from tests.command_line import SHORT, assert_refused, call, contents, run_folder
from tests.image_sets import make_folder

CPU = torch.device("cpu")
GB = 10**9


pytestmark = pytest.mark.usefixtures("one_thread", "cache", "whole_module")


@pytest.fixture
def memory(monkeypatch):
    """Sets the memory of this machine, (free, total) in bytes."""

    def set_to(free, total):
        monkeypatch.setattr("common.costs.memory.free_memory", lambda device: free)
        monkeypatch.setattr("common.costs.memory.total_memory", lambda device: total)

    return set_to


def distil(tmp_path, *words, script="DM/distill.py"):
    return call(script, *SHORT, "--save_path", tmp_path / "runs", *words)


# -- --dry_run -----------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_everything_and_leaves_nothing(tmp_path):
    result = distil(tmp_path, "--dry_run", "--lr_freq", "100")
    assert result.code == 0, result.err
    assert "flag: --dataset digits," in result.out
    assert "--lr_freq 100 (not 256)" in result.out
    assert "tuned here: docs/recipes.md: --msz_per_channel 16" in " ".join(result.out.split())
    assert "40 synthetic images, n = 4 per class, in the budget of 1 image per class" in result.out
    assert "640 numbers, 2.6 kB by the paper's count" in result.out
    assert f"{run_folder(tmp_path / 'runs')}: new" in result.out
    assert "2 iterations take" in result.out
    assert "GFLOP/s" in result.out
    assert "missing:\n  nothing" in result.out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_tells_how_far_a_run_is(tmp_path):
    assert distil(tmp_path).code == 0
    folder = run_folder(tmp_path / "runs")
    before = contents(folder)
    assert f"{folder}: finished" in distil(tmp_path, "--dry_run").out
    assert "would delete it" in distil(tmp_path, "--dry_run", "--resume", "never").out
    assert contents(folder) == before
    for name in ("summary.json", "checksums.json"):
        (folder / name).unlink()
    told = distil(tmp_path, "--dry_run").out
    assert f"{folder}: begun, 2 of 2 iterations are made" in " ".join(told.split())
    assert "0 iterations take" in told
    (folder / "checkpoint.pt").write_bytes(b"")
    told = distil(tmp_path, "--dry_run").out
    assert f"{folder}: begun, without a checkpoint that can be read" in " ".join(told.split())


def test_a_dry_run_lists_all_that_is_missing(tmp_path):
    words = ["--dataset", "CIFAR10", "--dry_run", "--data_path", tmp_path, "--buffer_path", tmp_path / "buffers"]
    result = call("TM/distill.py", *words, "--save_path", tmp_path / "runs")
    assert result.code == 0, result.err
    missing = " ".join(result.out.partition("missing:")[2].split())
    assert f"- the images of CIFAR10 in {tmp_path}: a run would download them" in missing
    assert f"- experts in {tmp_path / 'buffers'}/CIFAR10/ConvNetD3; to train them: python TM/buffer.py" in missing
    assert "16 per class" in result.out  # known before the images are
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_trajectory_matching_needs_no_experts(tmp_path):
    words = ["--dataset", "digits", "--model", "ConvNetD1W32", "--dry_run", "--buffer_path", tmp_path / "buffers"]
    result = call("TM/distill.py", *words, "--save_path", tmp_path / "runs", "--device", "cpu")
    assert result.code == 0, result.err
    assert "- experts in " in result.out
    assert "GFLOP/s" in result.out
    assert not list(tmp_path.iterdir())


def test_an_archive_is_not_unpacked(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"archive")
    words = ["--dataset", "CIFAR10", "--data_path", tmp_path, "--dry_run", "--save_path", tmp_path / "runs"]
    result = call("DM/distill.py", *words)
    assert "are an archive in" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize(
    "words", [["--batch_real", "0"], ["--model", "ConvNetX"], ["--lr_net", "1", "--eval_protocol", "glad"]]
)
def test_a_dry_run_refuses_what_a_run_would_refuse(tmp_path, words):
    assert distil(tmp_path, "--dry_run", *words).code == 2


@pytest.mark.parametrize("script", ["TM/buffer.py", "DM/evaluate.py --baseline random", "DM/distill.py"])
@pytest.mark.parametrize("name", ["imagenet-", "imagenet-x"])
def test_a_dry_run_refuses_a_subset_that_is_none(script, name):
    script, *flags = script.split()
    assert_refused(call(script, *flags, "--dataset", name, "--dry_run", "--device", "cpu"), f"no dataset '{name}'")


def test_a_dry_run_lists_the_runs_of_all_seeds(tmp_path):
    assert distil(tmp_path, "--seed", "1", "--name", "run-seed1").code == 0
    told = " ".join(distil(tmp_path, "--dry_run", "--seeds", "0,1").out.split())
    assert f"{run_folder(tmp_path / 'runs', name='run-seed0')}: new" in told
    assert f"{run_folder(tmp_path / 'runs', name='run-seed1')}: finished" in told


def test_a_dry_run_of_images_of_ones_own_in_fewer_bits(tmp_path):
    make_folder(tmp_path / "images", size=(16, 16), count=6)
    words = ["--dataset", f"folder:{tmp_path / 'images'}", "--storage", "int8", "--dry_run", "--device", "cpu"]
    result = call("DM/distill.py", *words, "--save_path", tmp_path / "runs")
    assert result.code == 0, result.err
    assert "rule: docs/recipes.md: " in result.out
    assert "bytes for a decoder of" in result.out
    assert "its set as measured here" in " ".join(result.out.split())


def test_a_dry_run_of_experts(tmp_path):
    words = ["--dataset", "digits", "--model", "ConvNetD1W32", "--train_epochs", "2", "--buffer_path", tmp_path]
    few = [*words, "--num_experts", "2", "--device", "cpu"]
    result = call("TM/buffer.py", *few, "--dry_run")
    assert result.code == 0, result.err
    assert "digits/ConvNetD1W32: new, 0 of 2 experts are there" in " ".join(result.out.split())
    assert "flag: --dataset digits" in result.out
    assert not list(tmp_path.iterdir())
    made = call("TM/buffer.py", *few)
    assert "2 experts to train for" in made.out
    assert "estimate" not in call("TM/buffer.py", *few).out  # nothing is left to do
    more = call("TM/buffer.py", *words, "--num_experts", "5", "--dry_run").out
    assert "begun, 2 of 5 experts are there" in " ".join(more.split())


def test_a_dry_run_of_an_evaluation(tmp_path):
    words = ["--baseline", "herding", "--dataset", "digits", "--ipc", "2", "--num_eval", "3", "--device", "cpu"]
    words += ["--references", "random,full"]
    result = call("DM/evaluate.py", *words, "--dry_run", "--output", tmp_path / "x.json")
    assert result.code == 0, result.err
    told = " ".join(result.out.split())
    assert "3 networks of each of ConvNetD3" in told
    assert "trained on 20 images of digits, tested on 360" in told
    assert "besides 20 epochs on the whole training set to choose images and the networks of --references " in told
    gone = call("DM/evaluate.py", "--synset", tmp_path / "no.safetensors", "--dry_run")
    assert f"- the synthetic set: there is no file {tmp_path / 'no.safetensors'}" in gone.out
    assert not list(tmp_path.iterdir())


# -- the line at the start -----------------------------------------------------------------------------------------


def test_a_run_begins_with_its_estimate_which_is_in_no_file(tmp_path):
    told = distil(tmp_path).out
    (line,) = [line for line in told.splitlines() if line.startswith("estimate: ")]
    assert "of memory at its peak; 40 synthetic images, 4 per class, in the budget of 1 image per class" in line
    texts = [path.read_bytes() for path in run_folder(tmp_path / "runs").iterdir()]
    assert not any(b"estimate: " in text for text in texts)
    assert "estimate: " not in distil(tmp_path).out  # it is finished


def test_what_cannot_be_estimated_is_not_told():
    options, _ = parse(dm.Options, "DM", ["--dataset", "digits"])
    assert needs_of("mine", options, SHAPES["digits"], CPU) is None
    assert needs_of("DM", options, SHAPES["digits"], CPU) is not None


def test_measuring_changes_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = measure("ConvNetD1W32", SHAPES["digits"], 7, CPU, "flip", seconds=0.01)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.flops > 0
    assert "training steps of ConvNetD1W32 on " in found.told


def test_what_is_left_of_a_run_takes_its_share_of_the_time(monkeypatch):
    monkeypatch.setattr("common.costs.forecast.measure", lambda *_: Speed(1e9, "told"))
    options, _ = parse(dm.Options, "DM", ["--dataset", "digits", "--Iteration", "100"])
    needs = needs_of("DM", options, SHAPES["digits"], CPU)
    whole, half = (forecast(options, needs, SHAPES["digits"], CPU, begun=begun) for begun in (0, 50))
    assert whole.updates == pytest.approx(needs.distill_flops / 1e9)
    assert half.updates == pytest.approx(whole.updates / 2)
    assert half.evaluations < whole.evaluations
    assert str(Forecast(50, 10, 0, 2 * GB, Speed(1, ""))) == "about 1 min, 2.0 GB of memory at its peak"
    assert "(3.0 times as long" in str(Forecast(50, 10, 0, 2 * GB, Speed(1, "", 3.0)))


# -- the estimate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["bf16", "int8", "coded"])
def test_sets_in_fewer_bits_are_estimated_with_their_own_number_of_images(storage):
    shape = DataShape(3, (16, 16), 2, 400, 30, 200)
    words = ["--dataset", "CIFAR10", "--model", "ConvNetD2", "--storage", storage]
    options, _ = parse(dm.Options, "DM", words)
    count = new_set(options, shape, "cpu").num_per_class
    plain, _ = parse(dm.Options, "DM", ["--dataset", "CIFAR10", "--model", "ConvNetD2"])
    found, other = (estimate("DM", each, shape, device="cpu") for each in (options, plain))
    assert count > new_set(plain, shape, "cpu").num_per_class
    assert found.evaluation_flops / other.evaluation_flops == pytest.approx(
        (count * 1001 * 3 + 15) / (new_set(plain, shape, "cpu").num_per_class * 1001 * 3 + 15), rel=0.02
    )
    assert dict(found.parts)["updates"] > dict(other.parts)["updates"]


def test_the_shape_is_known_before_images_are_loaded():
    assert known_shape("imagenet-a", 64).im_size == (64, 64)
    assert known_shape("3D-MNIST").im_size == (16, 16, 16)
    assert known_shape("folder:x") is None


def test_peak_memory_includes_what_this_process_holds():
    options, _ = parse(dm.Options, "DM", ["--dataset", "digits"])
    needs = needs_of("DM", options, SHAPES["digits"], CPU)
    peak = peak_of(needs, CPU, loaded=False)
    assert peak >= max(needs.memory_bytes, devices.resident_memory())
    assert peak_of(needs, torch.device("cuda"), loaded=False) == needs.memory_bytes > LIBRARIES


def test_freed_memory_that_is_kept_counts(monkeypatch):
    options, _ = parse(dm.Options, "DM", ["--dataset", "CIFAR10"])
    needs = needs_of("DM", options, SHAPES["CIFAR10"], CPU)
    in_use = needs.memory_bytes - LIBRARIES - dict(needs.parts)["images"]
    peaks = {}
    for keeps in (False, True):
        monkeypatch.setattr("common.system.start.keeps_memory", keeps)
        peaks[keeps] = peak_of(needs, CPU, loaded=False)
    # As much again as the tensors; what this process holds may change by a little between the two.
    assert peaks[True] - peaks[False] == pytest.approx(in_use, rel=0.05)


# -- memory that is not there --------------------------------------------------------------------------------------


def test_a_run_that_fits_nowhere_is_refused_before_images_are_read(tmp_path, memory):
    memory(1 * GB, 0.3 * GB)
    words = ["--dataset", "CIFAR10", "--data_path", tmp_path, "--no_download", "--save_path", tmp_path / "runs"]
    refused = call("DM/distill.py", *words, "--batch_real", "4096")
    assert_refused(refused, "estimated peak memory", "has 300 MB", "--chunk", "--batch_real", "--ignore_memory")
    assert not list(tmp_path.iterdir())
    insisting = call("DM/distill.py", *words, "--ignore_memory")
    assert_refused(insisting, "CIFAR10")  # which is not there
    assert "warning: " in insisting.err


def test_a_run_that_does_not_fit_now_is_warned_of(tmp_path, memory):
    memory(0, 10**15)
    result = distil(tmp_path)
    assert result.code == 0, result.err
    assert "warning: the estimated peak memory is" in result.err
    assert "0 bytes are free: lower " in result.err
    memory(None, None)  # where the system does not tell
    assert "warning" not in distil(tmp_path, "--name", "other").err
    memory(0, 0)
    assert distil(tmp_path).code == 0  # it is finished


def test_experts_that_fit_nowhere_are_refused(tmp_path, memory):
    memory(0, 1)
    words = ["--dataset", "digits", "--buffer_path", tmp_path, "--num_experts", "1", "--device", "cpu"]
    assert_refused(call("TM/buffer.py", *words), "--batch_train", "--ignore_memory")


def test_the_flag_that_is_named_lowers_the_largest_part(tmp_path, memory):
    memory(0, 1)
    plain = ["--syn_steps", "30", "--unroll", "plain", "--num_eval", "1", "--buffer_path", tmp_path]
    result = call("TM/distill.py", "--dataset", "digits", *plain, "--save_path", tmp_path, "--device", "cpu")
    assert_refused(result, "--unroll adjoint")
    assert_refused(distil(tmp_path, "--batch_real", "4000", "--model", "ConvNetD1W32BN"), "lower --batch_real,")
    assert BufferOptions().ignore_memory is False


# -- --find_lr -----------------------------------------------------------------------------------------------------


def search(tmp_path, *words, script="DM/distill.py"):
    result = distil(tmp_path, "--find_lr", "--find_lr_updates", "2", *words, script=script)
    assert result.code == 0, result.err
    folder = next((tmp_path / "runs").rglob("run-find_lr"))
    assert sorted(path.name for path in folder.iterdir()) == [FILE, PICTURE]
    assert not folder.with_name("run").exists()
    return result, json.loads((folder / FILE).read_text())


def test_the_step_sizes_make_the_updates_of_a_run(tmp_path):
    """So the losses with the usual step size are those that a run writes."""
    result, found = search(tmp_path)
    sizes = [trial["lr_freq"] for trial in found["trials"]]
    assert sizes == pytest.approx([256 * FACTOR**power for power in range(-4, 5)])
    assert f"suggested: --lr_freq {found['suggested']:.4g}" in result.out
    assert distil(tmp_path, "--name", "real").code == 0
    losses, _ = read_metrics(run_folder(tmp_path / "runs", name="real") / "metrics.jsonl")
    usual = next(trial for trial in found["trials"] if trial["lr_freq"] == 256)
    assert usual["losses"] == [loss for _, loss in losses]
    first = {trial["losses"][0] for trial in found["trials"]}
    assert len(first) == 1  # all begin with the same set
    scores = {trial["lr_freq"]: trial["score"] for trial in found["trials"] if not trial["diverged"]}
    assert found["suggested"] == min(scores, key=lambda size: scores[size])


@pytest.mark.parametrize("words", [["--storage", "coded"], ["--storage", "int8"], ["--optimizer", "adam"]])
def test_other_sets_and_optimisers_are_searched(tmp_path, words):
    _, found = search(tmp_path, *words)
    assert len({trial["losses"][0] for trial in found["trials"]}) == 1
    assert len({trial["losses"][1] for trial in found["trials"]}) > 5
    assert found["lr_freq"] == found["trials"][4]["lr_freq"]


def test_the_search_of_gradient_matching(tmp_path):
    _, found = search(tmp_path, script="DC/distill.py")
    assert len(found["trials"]) == 9


def test_a_step_size_that_diverges_is_stopped(tmp_path):
    result, found = search(tmp_path, "--lr_freq", str(256 * FACTOR**4), "--find_lr_updates", "4")
    last = found["trials"][-1]
    assert last["diverged"]
    assert len(last["losses"]) < 4
    assert last["score"] is None
    assert "diverged at iteration" in result.out
    assert found["suggested"] < found["lr_freq"]


def test_a_search_has_one_seed(tmp_path):
    assert_refused(distil(tmp_path, "--find_lr", "--seeds", "0-1"), "leave out --seeds")
    assert_refused(distil(tmp_path, "--find_lr", "--find_lr_updates", "0"), "--find_lr_updates 0 is too small")
