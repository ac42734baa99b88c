import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import Backend

from common.datasets import load_dataset
from common.matching import augment
from common.matching.distribution import match
from common.networks import build_network, reinitialise
from common.runs import pieces
from common.system import command, devices, parallel
from common.system.errors import InputError
from common.training.pool import EvaluationNetwork, train_and_test
from common.training.train import Batches, EvaluationProtocol
from tests.conftest import ROOT

ALL = "color_crop_cutout_flip_scale_rotate"


def accuracies(precision, device):
    train_data, test_data = (data.to(device) for data in load_dataset("digits"))
    images = Batches(train_data.batch(torch.arange(200)), train_data.labels[:200])
    network = build_network("ConvNetD2W32", 1, 10, (8, 8)).to(device)
    with devices.precision(precision, torch.device(device)):
        given = (EvaluationNetwork(network), lambda number: images, [test_data], EvaluationProtocol(8, 0.05, 64, ALL))
        return [each for (each,) in train_and_test(*given, [0, 1], 0)]


def loss_and_gradient(precision, device, classes=3):
    draws = torch.Generator().manual_seed(0)
    real, synthetic = (torch.randn(classes * count, 3, 16, 16, generator=draws) for count in (8, 2))
    drawn = augment.sample(ALL, classes, draws, (16, 16))
    network = build_network("ConvNetD2W32", 3, classes, (16, 16))
    reinitialise(network, 0)
    embed = network.to(device).requires_grad_(False).embed
    with devices.precision(precision, torch.device(device)):
        loss, gradient = match(embed, real.to(device), synthetic.to(device), classes, drawn, 4)
    return loss.cpu(), gradient.cpu()


def test_bf16_trains_as_well_as_fp32():
    assert min(accuracies("fp32", "cpu")) > 0.6
    assert min(accuracies("bf16", "cpu")) > 0.6


def test_bf16_matching_keeps_the_loss_and_the_gradient_in_float32():
    loss, gradient = loss_and_gradient("fp32", "cpu")
    rounded, direction = loss_and_gradient("bf16", "cpu")
    assert rounded.dtype == direction.dtype == torch.float32
    assert rounded != loss  # it did compute in another precision
    assert abs(rounded - loss) < 0.02 * loss
    assert torch.cosine_similarity(direction.flatten(), gradient.flatten(), dim=0) > 0.99


def test_devices_are_named_or_refused():
    assert devices.resolve_device("cpu").type == "cpu"
    assert devices.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "mps", "cuda:99"):
        with pytest.raises(InputError, match=name):
            devices.resolve_device(name)
    with pytest.raises(InputError, match="tf32 needs a CUDA GPU"):
        devices.check_precision("tf32", torch.device("cpu"))
    assert {"cpu", "cores", "threads", "torch", "python"} <= devices.describe_hardware(torch.device("cpu")).keys()


def test_a_machine_that_cannot_compile_says_so_in_a_sentence(monkeypatch, capsys):
    def refuse(function):
        raise RuntimeError("no compiler found\nand a long trace")

    monkeypatch.setattr(torch, "compile", refuse)
    assert not devices.can_compile()
    said = capsys.readouterr().out
    assert said == "cannot compile here (RuntimeError: no compiler found): the run goes on without --compile\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_free_memory_is_that_of_the_machine_or_what_a_container_leaves(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 5 kB\n",
        "/sys/fs/cgroup/memory.max": "4000\n",
        "/sys/fs/cgroup/memory.current": "1000\n",
    }

    def read(path, **_):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    cpu = torch.device("cpu")
    assert devices.free_memory(cpu) == 3000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert devices.free_memory(cpu) == 5 * 1024
    files["/sys/fs/cgroup/memory.max"] = "500\n"
    assert devices.free_memory(cpu) == 0
    for name in [name for name in files if "cgroup" in name]:
        del files[name]
    files |= {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "900\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "200\n",
    }
    assert devices.free_memory(cpu) == 700
    del files["/proc/meminfo"]
    assert devices.free_memory(cpu) is None


def test_peak_memory_is_what_the_system_says_in_bytes():
    peak = devices.peak_memory(torch.device("cpu"))
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    assert set(peak) == {"cpu"}
    assert peak["cpu"] == pytest.approx(1024 * int(line.split()[1]), rel=0.02)  # counted lazily


@pytest.mark.cuda
def test_peak_memory_of_a_gpu_is_that_of_its_tensors():
    held = torch.ones(25_000_000, device="cuda")
    assert devices.peak_memory(torch.device("cuda"))["cuda"] >= held.nbytes


@pytest.mark.cuda
def test_matching_on_cuda_equals_the_cpu():
    loss, gradient = loss_and_gradient("fp32", "cpu")
    there, direction = loss_and_gradient("fp32", "cuda")
    torch.testing.assert_close(there, loss, rtol=1e-4, atol=0)
    assert (direction - gradient).norm() < 1e-3 * gradient.norm()


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_evaluation_on_cuda_is_as_good_as_on_the_cpu(precision):
    assert min(accuracies(precision, "cuda")) > 0.6


@pytest.mark.cuda
@pytest.mark.parametrize(
    "flags",
    [[], ["--precision", "tf32"], ["--precision", "bf16"], ["--compile"], ["--model", "ConvNetD2W32BN"]],
    ids=["plain", "tf32", "bf16", "compiled", "batchnorm"],
)
def test_digits_on_cuda_from_end_to_end(flags, tmp_path, monkeypatch, capsys):
    import runpy

    small = ["--device", "cuda", "--num_eval", "1", "--epoch_eval_train", "40", "--save_path", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["distill.py", *small, *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "DM" / "distill.py"), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    """As torchrun tells it by the environment; on a machine that shows two GPUs."""
    current: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert devices.resolve_device("cuda:1") == torch.device("cuda", 1)
    for key, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(key, value)
    for name in ("auto", "cuda"):
        assert devices.resolve_device(name) == torch.device("cuda", 1)
    assert current == [1, 1]
    assert devices.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda:1' is one for 8 processes: give --device cuda"):
        devices.resolve_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="lower --nproc_per_node to 2, or give --device cpu"):
        devices.resolve_device("auto")


def shows(monkeypatch, kind):
    """This machine shows two accelerators of this kind; None for none."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_processes_exchange_by_the_accelerator_s_own_backend(monkeypatch):
    monkeypatch.setattr(Backend, "default_device_backend_map", {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"})
    known = {None: "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl", "mps": "gloo"}
    for kind, wanted in known.items():
        with monkeypatch.context() as patch:
            shows(patch, kind)
            assert command.backends() == wanted, kind


def test_several_processes_are_refused_where_devices_cannot_exchange(monkeypatch):
    monkeypatch.setattr(Backend, "default_device_backend_map", {"cpu": "gloo", "cuda": "nccl"})
    shows(monkeypatch, "mps")
    assert devices.resolve_device("auto") == torch.device("mps")
    for key, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match="exchanges nothing between mps devices: start one process, or give"):
        devices.resolve_device("auto")
    assert devices.resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "cpu"])
def test_batch_statistics_are_shared_where_torch_can(kind, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "world", lambda: 2)
    network = build_network("ConvNetD1W8BN", 1, 4, (8, 8))
    shared, share = pieces.share_statistics(network, 4, torch.device(kind), "ConvNetD1W8BN")
    together = any(isinstance(each, torch.nn.SyncBatchNorm) for each in shared.modules())
    assert (together, share.count) == ((True, 2) if kind in ("cuda", "xpu") else (False, 4))
    told = f"is not shared on {'a CPU' if kind == 'cpu' else kind}: one of the 2 processes"
    assert (told in capsys.readouterr().out) is not together
