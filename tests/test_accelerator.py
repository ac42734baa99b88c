"""Every step on a stand-in for an accelerator, with tensors that have no numbers: placement, waiting, and counts.

What is computed there is not tested so: `pytest -m cuda` compares numbers with those of the CPU where there is a GPU.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from common.system import devices
from common.system.errors import InputError
from tests.conftest import ROOT

REWRITE = "python benchmarks/launches.py --authors PATH rewrites the table"
GRAPHS = "ours, CUDA graphs"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import standin
        import standin_device

        yield SimpleNamespace(can_stand_in=standin_device.can_stand_in, LAUNCH_NOTHING=standin.LAUNCH_NOTHING)
    for name in ("standin", "standin_device"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory):
    """What each case of accelerator_cases.py found; they run in one process of their own."""
    if why := bench.can_stand_in():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("accelerator")
    words = [sys.executable, "-m", "tests.accelerator_cases", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def table():
    return json.loads((ROOT / "benchmarks" / "launches.json").read_text())


@pytest.fixture(scope="module")
def predictions():
    return json.loads((ROOT / "benchmarks" / "several_gpus.json").read_text())


def of(results, kind):
    return {name.partition(": ")[2]: each for name, each in results.items() if name.startswith(f"{kind}: ")}


def test_nothing_is_on_the_wrong_device_and_no_step_waits(results):
    failed = {name: each["error"][-3000:] for name, each in results.items() if "error" in each}
    assert not failed, "\n\n".join(f"{name}\n{error}" for name, error in failed.items())
    assert {"dm", "dc", "tm", "expert", "test", "decode", "dsa rotate of a class"} <= of(results, "step").keys()
    assert {"DM", "TM", "TM, plain", "DC, trained between updates", "experts"} <= of(results, "script").keys()
    # One to see that it can, and five batches of 256 images, of which three warm up; three steps, in each direction.
    assert results["script: experts"]["graphs"] == 1 + 5 - 3
    assert results["script: TM, CUDA graphs"]["graphs"] == 2 * 3
    assert results["sets"].keys() >= {"dct", "dft", "dwt", "identity", "adam", "bf16", "int8", "coded"}
    assert all(each == ["standin", "standin"] for name, each in results["sets"].items() if name != "seconds")


def test_networks_compute_in_the_precision_that_is_asked_for(results):
    types = {"fp32": ["torch.float32"], "tf32": ["torch.float32"], "bf16": ["torch.bfloat16"]}
    for name, found in of(results, "step").items():
        if name != "decode" and not name.startswith("dsa"):
            # Of stacked networks the stand-in's autocast does not see the convolutions.
            seen = found["types"] | ({"bf16": types["bf16"]} if name == "evaluation of three at once" else {})
            assert seen == types, name


def test_every_step_is_refused_with_a_fault_in_it(results):
    """A test of the test: what is planted into a step is found there."""
    wanted = {
        "a tensor on the CPU": "aten.add has a tensor [3] on the CPU among those on the device",
        "a number that is waited for": "aten._local_scalar_dense: the CPU waits for a number",
        "a copy that is waited for": "aten._to_copy: the copy of [3] to the device is waited for",
        "a copy from pageable memory": "aten._to_copy: the copy of [3] to the device is not from pinned memory",
    }
    steps = of(results, "step")
    assert len(steps) == 9 + 12
    for name, found in steps.items():
        assert found["refused"] == wanted, name


def test_the_device_is_asked_for_what_it_lacks(results):
    found = results["device"]
    assert found["auto"] == "standin"
    assert "no float64" in found["float64"]
    assert (found["exact"], found["exact where it is there"]) == ("cpu", "standin:0")
    assert found["bf16"] == ""
    assert (found["pins"], found["pins outside"]) == (True, False)
    assert found["moved"] == [
        ["torch.int64", [3]],
        ["torch.float32", []],
        ["torch.bool", [1, 2]],
        ["torch.float32", [0]],
    ]
    assert found["memory"] == [80 * 2**30, 80 * 2**30, 0], "it does not tell what is reserved"
    assert (found["peak"], found["hardware"]) == (["cpu"], "standin")


def ours(versions):
    return {name: each for name, each in versions.items() if name in ("ours", GRAPHS)}


# -- counts ---------------------------------------------------------------------------------------------------------


def test_the_committed_counts_are_those_of_the_code(results, table):
    if table["torch"] != torch.__version__.partition("+")[0]:
        pytest.skip(f"the table is of torch {table['torch']}, which counts otherwise")
    counted = {name: ours(versions) for name, versions in of(results, "count").items()}
    assert counted == {name: ours(versions) for name, versions in table["cases"].items()}, REWRITE
    assert {name: results["network"][name] for name in table["network"]} == table["network"], REWRITE


def test_our_steps_launch_a_fraction_of_the_authors(table):
    """At most a third: some as they are, and all but DM and DC, which need none, with CUDA graphs."""
    cases, network = table["cases"], table["network"]

    def share(name, version="ours"):
        return cases[name][version]["launches"] / cases[name]["authors"]["launches"]

    assert max(map(share, ("dm", "dc", "evaluation_5"))) <= 1 / 3
    graphs = {name for name, versions in cases.items() if GRAPHS in versions}
    assert graphs == {"tm", "expert", "test", "evaluation_1", "evaluation_5"}
    assert max(share(name, GRAPHS) for name in graphs - {"tm"}) <= 1 / 3
    tm = cases["tm"]
    assert tm[GRAPHS]["launches"] <= tm["authors, anomaly mode off"]["launches"] / 3
    # Without graphs the network's own operations are more than that: four batches of an expert, two of a test.
    assert 4 * network["step"] > cases["expert"]["authors"]["launches"] / 3
    assert 2 * network["test"] > cases["test"]["authors"]["launches"] / 3
    assert cases["dm"]["ours"]["blocking"] == cases["dm"]["ours"]["waits"] == 0


def test_the_readme_has_the_table(table):
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for name, versions in table["cases"].items():
        theirs = next(each for version, each in versions.items() if version not in ("ours", GRAPHS))
        assert f"| `{name}` | {theirs['launches']:,} | {versions['ours']['launches']:,} |" in text, REWRITE


def test_processes_share_the_work_and_sum_what_a_run_sums(results):
    """Of two classes, with 4 coefficients per image on each channel: see TINY."""
    found = results["several processes"]
    alone, one_of_two = found["DM"]["strong"].values()
    assert alone["exchanges"] == alone["exchanged_bytes"] == 0
    assert one_of_two["flops"] == alone["flops"] / 2
    coefficients, loss, step_size, images = 2 * 4 * 3 * 64, 1, 1, 2 * 4 * 3 * 16 * 16
    assert (one_of_two["exchanges"], one_of_two["exchanged_bytes"]) == (1, 4 * (coefficients + loss))
    assert found["DM"]["weak"]["2"]["flops"] == alone["flops"]
    assert found["DM"]["weak"]["2"]["exchanged_bytes"] == 4 * (2 * coefficients + loss)
    weights = (3 * 9 + 1 + 2) * 8 + 8 * 8 * 8 * 2 + 2
    team = found["TM, one expert"]["strong"]["2"]
    # In both steps the weights on the way and on the way back; once the images and the step size; then the update's.
    assert team["exchanged_bytes"] == 4 * (2 * 2 * weights + images + step_size + coefficients + loss + step_size)


def test_the_readme_has_the_predictions(predictions, table):
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert set(predictions["work"]) == {"DM", "DC", "TM, one expert", "TM, 8 experts", "evaluation"}
    for name, case in {"DM": "dm", "DC": "dc", "TM, one expert": "tm"}.items():
        alone, *others = predictions["work"][name]["strong"].values()
        assert alone["launches"] == table["cases"][case]["ours"]["launches"], name
        for each in others:
            ratios = f"{alone['launches'] / each['launches']:.2f} | {alone['flops'] / each['flops']:.2f} |"
            assert f"| {each['launches']:,} | {each['flops'] / 1e9:,.1f} | {each['exchanges']} |" in text
            assert ratios in text


def test_what_is_not_counted_launches_nothing(bench):
    """Views, as their schemas say: results that share memory with what is given; and memory without contents."""
    for name in bench.LAUNCH_NOTHING:
        packet = getattr(torch.ops.aten, name)
        returned = [each for kind in packet.overloads() for each in getattr(packet, kind)._schema.returns]
        shares = any(each.alias_info is not None and not each.alias_info.is_write for each in returned)
        assert shares or "empty" in name or name.startswith(("_unsafe", "unsafe_", "lift_fresh", "_reshape_alias")), (
            name
        )


# -- without a stand-in ----------------------------------------------------------------------------------------------


def test_a_machine_is_asked_for_its_accelerator(monkeypatch):
    """--device auto takes what torch.accelerator tells, and another kind is refused with what is there."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert devices.accelerator() is None
    assert devices.resolve_device("auto") == cpu
    with pytest.raises(
        InputError, match=r"device 'mps' is not there: this machine shows no accelerator; try --device cpu"
    ):
        devices.resolve_device("mps")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert devices.resolve_device("auto") == torch.device("xpu")
    assert devices.resolve_device("xpu:1") == torch.device("xpu", 1)
    assert devices.resolve_device("cpu") == cpu
    with pytest.raises(
        InputError, match=r"'cuda' is not there: this machine shows xpu as its accelerator; try --device xpu"
    ):
        devices.resolve_device("cuda")
    with pytest.raises(InputError, match=r"'xpu:2' is not there: this machine shows 2 xpu devices"):
        devices.resolve_device("xpu:2")
    with pytest.raises(InputError, match="device 'vulkan' is not supported"):
        devices.resolve_device("vulkan")


class Module:
    """What torch.cuda and torch.xpu say of memory."""

    def mem_get_info(self, device):
        return 300, 1000

    def memory_reserved(self, device):
        return 70

    def max_memory_allocated(self, device):
        return 50

    def get_device_name(self, device):
        return "some card"


class Mps:
    """What torch.mps says of memory, which is that of the machine."""

    def recommended_max_memory(self):
        return 1000

    def driver_allocated_memory(self):
        return 400


def test_memory_is_what_the_device_tells(monkeypatch):
    card = torch.device("xpu", 0)
    monkeypatch.setattr(torch, "get_device_module", lambda device: Module())
    assert (devices.free_memory(card), devices.total_memory(card), devices.reserved_memory(card)) == (300, 1000, 70)
    assert devices.peak_memory(card)["xpu"] == 50
    assert devices.describe_hardware(card)["gpu"] == "some card"
    monkeypatch.setattr(torch, "get_device_module", lambda device: Mps())
    card = torch.device("mps")
    assert (devices.free_memory(card), devices.total_memory(card), devices.reserved_memory(card)) == (600, 1000, 400)
    assert set(devices.peak_memory(card)) == {"cpu"}, "it does not tell"
    assert devices.describe_hardware(card)["gpu"] == "mps"


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "lacks", lambda device, kind: "no such type")
    with pytest.raises(InputError, match=r"--precision bf16 does not work on mps here \(no such type\): give fp32"):
        devices.check_precision("bf16", torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(InputError, match="tf32 needs a CUDA GPU with matrix units"):
        devices.check_precision("tf32", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    devices.check_precision("tf32", torch.device("cuda"))
