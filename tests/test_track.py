"""What trackers leave is what the run said: read back with TensorBoard's own reader and wandb's own messages."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from common.matching import distribution
from common.runs.track import _accuracies, open_tracker
from common.system.errors import InputError
from common.system.text import point_of
from tests.command_line import TINY, call, run_folder
from tests.conftest import ROOT
from tests.left_out import leave_out_pictures
from tests.tracked import CONFIG, POINT, START, SUMMARY, random_states

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture
def coloured(tmp_path):
    for name, colour in COLOURS.items():
        Image.new("RGB", (5, 3), colour).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in COLOURS}


def test_an_accuracy_that_does_not_exist_is_no_point_of_a_curve():
    point = {"iteration": 1, **point_of({"A": [None, None], "B": [0.25, None]}, "A")}
    assert _accuracies(point) == {"accuracy/B": 0.25, "diverged": 2, "diverged/A": 2, "diverged/B": 1}


# -- none --------------------------------------------------------------------------------------------------------


def test_no_tracker_writes_nothing_and_imports_neither_package(tmp_path):
    driver = """
import pathlib, sys
from common.runs.track import open_tracker
tracker = open_tracker("none", pathlib.Path(), {}, name="a", say=sys.exit)
tracker.scalars(1, loss=0.5)
tracker.evaluation({"iteration": 1, "mean": 0.5, "std": 0.0})
tracker.picture("images", pathlib.Path("missing.png"), 1)
tracker.summary({})
tracker.close()
assert not {"wandb", "tensorboard", "torch.utils.tensorboard"} & set(sys.modules)
"""
    run_driver(driver, tmp_path)
    assert list(tmp_path.iterdir()) == []


def run_driver(driver, folder, *words, **environment):
    """Run the code in a process of its own, in `folder`; what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", driver, *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize(
    ("kind", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboard"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, kind, module):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"--track {kind} needs .*: pip install {kind} .*extra trackers"):
        open_tracker(kind, tmp_path, CONFIG, name="a")


# -- TensorBoard -------------------------------------------------------------------------------------------------


def read(folder):
    """All that TensorBoard would show of a folder: its losses as (step, value), and the reader for the rest."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars("loss")], reader


def texts(reader, tag):
    """(step, Markdown) of a tag."""
    events = reader.Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


@pytest.fixture
def tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    said = []

    def start(resumed_from):
        # Event files are read in the order of their names, which begin with the second. A run that is started again
        # takes longer to start.
        if (tmp_path / "tensorboard").exists():
            time.sleep(1)
        tracker = open_tracker("tensorboard", tmp_path, CONFIG, "a", resumed_from=resumed_from, say=said.append)
        assert said.pop() == f"tracked: tensorboard --logdir {tmp_path}/tensorboard"
        assert said == []
        return tracker

    return start


def test_tensorboard_reads_what_was_written(tmp_path, tensorboard, coloured):
    before = random_states()
    tracker = tensorboard(None)
    tracker.picture("images", coloured["red"], 0)
    tracker.evaluation(START)
    for updates in range(1, 11):
        tracker.scalars(updates, loss=1 / updates)
    tracker.picture("images", coloured["blue"], 10)
    tracker.evaluation(POINT)
    tracker.summary(SUMMARY)
    tracker.close()
    assert random_states() == before

    losses, reader = read(tmp_path / "tensorboard")
    assert [step for step, _ in losses] == list(range(1, 11))
    assert [value for _, value in losses] == pytest.approx([1 / step for step in range(1, 11)])
    accuracies = {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
        if tag != "loss"
    }
    assert accuracies == {
        "accuracy/mean": [(0, 0.125), (10, 0.5)],
        "accuracy/std": [(0, 0.0), (10, 0.25)],
        "accuracy/ConvNetD1": [(10, 0.75)],
        "accuracy/AlexNet": [(10, 0.25)],
    }
    for event, step, colour in zip(reader.Images("images"), (0, 10), COLOURS.values(), strict=True):
        assert event.step == step
        with Image.open(BytesIO(event.encoded_image_string)) as image:
            assert np.array_equal(np.asarray(image), np.broadcast_to(colour, (3, 5, 3)))
    [(step, config)] = texts(reader, "config")
    assert step == 0
    assert r'| dataset | "folder:a\|b" |' in config
    assert "| hardware.cores | 2 |" in config
    [(step, summary)] = texts(reader, "summary")
    assert step == 10
    assert "| last.networks.AlexNet.mean | 0.25 |" in summary


def test_tensorboard_lists_the_options_beside_the_accuracy(tmp_path, tensorboard):
    """In one run: add_hparams would make a second, without curves."""
    tracker = tensorboard(None)
    tracker.scalars(1, loss=1.0)
    tracker.summary(SUMMARY)
    tracker.close()
    from tensorboard.plugins.hparams import metadata

    _, reader = read(tmp_path / "tensorboard")
    contents = reader.PluginTagToContent(metadata.PLUGIN_NAME)
    options = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG]).hparams
    assert options["lr_freq"].number_value == 0.1
    assert options["dataset"].string_value == "folder:a|b"
    assert options["hardware.cores"].number_value == 2
    metrics = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG]).metric_infos
    assert [metric.name.tag for metric in metrics] == ["accuracy/mean"]
    assert metadata.SESSION_END_INFO_TAG in contents
    assert [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()] == []


def test_a_resumed_run_shows_each_point_once(tmp_path, tensorboard, coloured):
    """Killed after 9 updates, continued from its checkpoint after 6, whose evaluation and picture are kept."""
    killed = tensorboard(None)
    for updates in range(1, 7):
        killed.scalars(updates, loss=1.0)
    killed.picture("images", coloured["red"], 6)
    killed.evaluation(POINT | {"iteration": 6})
    for updates in range(7, 10):
        killed.scalars(updates, loss=2.0)
    killed.picture("images", coloured["red"], 9)
    killed.close()
    resumed = tensorboard(6)
    for updates in range(7, 13):
        resumed.scalars(updates, loss=3.0)
    resumed.evaluation(POINT | {"iteration": 12})
    resumed.close()
    losses, reader = read(tmp_path / "tensorboard")
    assert losses == [(step, 1.0 if step <= 6 else 3.0) for step in range(1, 13)]
    assert [event.step for event in reader.Scalars("accuracy/mean")] == [6, 12]
    assert [event.step for event in reader.Images("images")] == [6]


def test_a_run_that_starts_anew_hides_what_was_there(tmp_path, tensorboard):
    """Killed before its first checkpoint, it left points; it makes them all again."""
    for value in (1.0, 2.0):
        tracker = tensorboard(None)
        tracker.evaluation(START | {"mean": value})
        tracker.scalars(1, loss=value)
        tracker.close()
    losses, reader = read(tmp_path / "tensorboard")
    assert losses == [(1, 2.0)]
    assert [event.value for event in reader.Scalars("accuracy/mean")] == [2.0]


# -- wandb -------------------------------------------------------------------------------------------------------

# A run stopped after 6 updates, then continued to the end; then one whose wandb process is killed under it. Says what
# changed that a run relies on, and which processes are wandb's.
DRIVER = """
import json, os, pathlib, signal, sys, time, wandb
from common.system.errors import InputError
from common.runs.track import open_tracker
from tests.tracked import CONFIG, POINT, START, SUMMARY, random_states

folder, red, blue = map(pathlib.Path, sys.argv[1:])
said, children = [], []
handlers = lambda: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
before = random_states(), handlers()

def start(**changes):
    tracker = open_tracker("wandb", folder, CONFIG | changes, name="DM/digits", group="DM/digits/ipc1", say=said.append)
    children.extend(pathlib.Path("/proc/self/task", str(os.getpid()), "children").read_text().split())
    return tracker

tracker = start()
tracker.picture("images", red, 0)
tracker.evaluation(START)
for updates in range(1, 7):
    tracker.scalars(updates, loss=1 / updates)
tracker.close()

time.sleep(1)  # wandb names its folders by the second
tracker = start(chunk=7)
for updates in range(7, 11):
    tracker.scalars(updates, loss=1 / updates)
tracker.picture("images", blue, 10)
tracker.evaluation(POINT)
tracker.summary(SUMMARY)
tracker.close()
kept = before == (random_states(), handlers())

said.append(None)
time.sleep(1)
tracker = start()
os.kill(int(children[-1]), signal.SIGKILL)
for updates in range(20):  # how many are on their way before the loss is noticed is up to the system
    tracker.scalars(updates, loss=1.0)
    time.sleep(0.02)
tracker.evaluation(START)
tracker.close()
wandb.teardown()

refused = []
for mode in ("online", "nonsense"):
    os.environ["WANDB_MODE"] = mode
    try:
        start()
    except InputError as error:
        refused.append(str(error))
    wandb.teardown()
print(json.dumps({"said": said, "children": children, "kept": kept, "refused": refused}))
"""


@pytest.fixture(scope="module")
def wandb_runs(tmp_path_factory):
    pytest.importorskip("wandb")
    if not Path("/proc/self/task").exists():
        pytest.skip("looks for wandb's processes in /proc")
    path = tmp_path_factory.mktemp("wandb")
    for name in ("home", "here", "run"):
        (path / name).mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (5, 3), colour).save(path / f"{name}.png")
    # Whoever runs the tests may be logged in, or have chosen another project.
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        out = run_driver(
            DRIVER,
            path / "here",
            path / "run",
            path / "red.png",
            path / "blue.png",
            HOME=str(path / "home"),
            NETRC=str(path / "home" / "netrc"),
            TMPDIR=str(path / "home"),
        )
    stores = sorted((path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(stores) == 3
    return SimpleNamespace(path=path, **json.loads(out), out=out, stores=stores)


def records(path):
    """wandb's messages in a run-*.wandb file: LevelDB's log format after a header of its own.

    Blocks of 32 KiB hold chunks of (checksum 4 bytes, length 2, kind 1; payload); a message is one chunk of kind 1, or
    a first (2), middle ones (3) and a last (4). No chunk begins in the last 6 bytes of a block.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = path.read_bytes(), 7, []
    assert content.startswith(b":W&B")
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            yield Record.FromString(b"".join(parts))
            parts.clear()


def items(updates):
    """{name: value} of wandb's key-value lists."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def history(path):
    """{updates made: {name: value}}, without what wandb adds."""
    rows = [items(record.history.item) for record in records(path) if record.HasField("history")]
    return {row["_step"]: {key: value for key, value in row.items() if not key.startswith("_")} for row in rows}


def test_wandb_offline_holds_what_was_logged(wandb_runs):
    stopped, resumed = (history(store) for store in wandb_runs.stores[:2])
    assert {step: row["loss"] for step, row in stopped.items() if "loss" in row} == {n: 1 / n for n in range(1, 7)}
    assert {step: row["loss"] for step, row in resumed.items() if "loss" in row} == {n: 1 / n for n in range(7, 11)}
    assert (stopped[0]["accuracy/mean"], stopped[0]["accuracy/std"]) == (0.125, 0)
    names = ("mean", "std", "ConvNetD1", "AlexNet")
    assert [resumed[10][f"accuracy/{name}"] for name in names] == [0.5, 0.25, 0.75, 0.25]
    for store, row, colour in zip(wandb_runs.stores, (stopped[0], resumed[10]), COLOURS.values(), strict=False):
        with Image.open(store.parent / "files" / row["images/path"]) as image:
            assert np.array_equal(np.asarray(image), np.broadcast_to(colour, (3, 5, 3)))


def test_wandb_continues_one_run(wandb_runs):
    """One id for all parts, which is the folder's; the configuration is that of the last; a stopped run has failed."""
    runs = [next(record.run for record in records(store) if record.HasField("run")) for store in wandb_runs.stores[:2]]
    assert {run.run_id for run in runs} == {(wandb_runs.path / "run" / "wandb" / "run_id").read_text()}
    assert {(run.display_name, run.project, run.run_group) for run in runs} == {("DM/digits", "fred", "DM/digits/ipc1")}
    for run, chunk in zip(runs, (None, 7), strict=True):
        config = items(run.config.update)
        assert {key: config[key] for key in CONFIG} == CONFIG | {"chunk": chunk}
    exits = [next(r.exit.exit_code for r in records(store) if r.HasField("exit")) for store in wandb_runs.stores[:2]]
    assert exits == [1, 0]
    summary = {}
    for record in records(wandb_runs.stores[1]):
        summary |= items(record.summary.update)
    assert summary["last"]["networks"]["ConvNetD1"]["mean"] == 0.75
    assert summary["seconds"] == 1.5


def test_wandb_says_one_line_and_leaves_nothing_behind(wandb_runs):
    path = wandb_runs.path
    line = f"tracked offline, to upload: wandb sync {path}/run/wandb/offline-run-*"
    assert wandb_runs.said[:3] == [line, line, None]
    assert wandb_runs.out.count("\n") == 1  # the driver's own: wandb prints nothing
    assert wandb_runs.kept  # random states and signal handlers
    assert list((path / "here").iterdir()) == []
    deadline = time.monotonic() + 10
    while alive := [number for number in wandb_runs.children if is_wandb(number)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def is_wandb(number):
    try:
        return b"wandb" in Path(f"/proc/{number}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_run_outlives_wandbs_process(wandb_runs):
    """Killed, e.g. for memory: said once, and the run goes on."""
    tracked, *lost = wandb_runs.said[3:]
    assert "wandb sync" in tracked
    assert len(lost) == 1
    assert "the run goes on untracked" in lost[0]


def test_wandb_that_cannot_start_is_an_input_error(wandb_runs):
    online, nonsense = wandb_runs.refused
    assert online == "WANDB_MODE is online but nobody is logged in: run wandb login, or unset WANDB_MODE"
    assert "wandb refuses its settings" in nonsense
    assert "nonsense" in nonsense
    assert "\n" not in nonsense


class Unreachable(Exception):
    """What wandb.init raises without a network."""


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("asked", "logged_in", "mode"),
    [
        ("online", True, "online"),
        ("online", False, "offline"),
        ("run", True, "online"),
        ("dryrun", True, "offline"),
        ("offline", False, "offline"),
        ("disabled", True, "disabled"),
    ],
)
def test_wandb_uploads_only_where_somebody_is_logged_in(tmp_path, monkeypatch, asked, logged_in, mode, new):
    """As newer versions tell (login) and as older ones do (api); neither is allowed to prompt."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    fake, asked_for = ModuleType("wandb"), []

    def init(**given):
        asked_for.append(given)
        raise Unreachable("no\nanswer")

    fake.Error, fake.Settings, fake.init = Unreachable, SimpleNamespace, init
    fake.setup = lambda settings: SimpleNamespace(settings=SimpleNamespace(mode=asked, project=None))
    fake.login = (lambda prompt=True: logged_in and not prompt) if new else lambda timeout=None: pytest.fail("prompts")
    fake.api = SimpleNamespace(api_key="key" if logged_in else None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(InputError, match=r"wandb cannot start \(no answer\): set WANDB_MODE=offline"):
        open_tracker("wandb", tmp_path, CONFIG, name="a", project="mine")
    assert (asked_for[0]["mode"], asked_for[0]["project"]) == (mode, "mine")


# -- a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _small_pictures(monkeypatch):
    leave_out_pictures(monkeypatch, instead=lambda path, *_: Image.new("RGB", (5, 3)).save(path))


def distil(path, *words):
    setting = [*TINY, "--Iteration", 4, "--eval_it", 2, "--num_eval", 1, "--epoch_eval_train", 0, "--name", "run"]
    return call("DM/distill.py", *setting, "--save_path", path, *words)


@pytest.mark.usefixtures("_small_pictures")
def test_a_tracked_run_is_the_one_that_it_would_be_untracked(tmp_path):
    """Bit for bit, whether its tracker was there from the start, or only when it was continued after SIGTERM."""
    pytest.importorskip("tensorboard")
    assert distil(tmp_path / "none").code == 0
    untracked = run_folder(tmp_path / "none")
    for first in ("none", "tensorboard"):
        original, updates = distribution.match, []

        def stopping(*positional, original=original, updates=updates):
            updates.append(None)
            if len(updates) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*positional)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distribution, "match", stopping)
            assert distil(tmp_path / first / "stopped", "--track", first).code == 128 + signal.SIGTERM
        result = distil(tmp_path / first / "stopped", "--track", "tensorboard")
        assert result.code == 0, result.err
        folder = run_folder(tmp_path / first / "stopped")
        for name in ("synset.safetensors", "synset_best.safetensors"):
            assert (folder / name).read_bytes() == (untracked / name).read_bytes()
        losses, reader = read(folder / "tensorboard")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        recorded = [(line["iteration"] + 1, line["loss"]) for line in lines if "loss" in line]
        shown = [
            [event.step for event in events] for events in (reader.Images("images"), reader.Scalars("accuracy/mean"))
        ]
        measured = {event.step: event.value for event in reader.Scalars("measured/images_per_second")}
        for line in lines:
            if "evaluation" in line and line["evaluation"]["iteration"] in shown[1]:
                assert measured[line["evaluation"]["iteration"]] == pytest.approx(line["measured"]["images_per_second"])
        assert {"measured/updates_per_second", "measured/evaluation_share", "measured/peak_memory_bytes.cpu"} <= {
            *reader.Tags()["scalars"]
        }
        if first == "tensorboard":
            assert losses == recorded
            assert shown == [[0, 2, 4], [0, 2, 4]]
            assert [event.step for event in reader.Images("masks")] == [0]
        else:
            assert losses == recorded[3:]
            assert shown == [[4], [4]]
        assert [event.step for event in reader.Images("curves")] == [4]


@pytest.mark.usefixtures("_small_pictures")
def test_a_run_that_is_discarded_takes_its_tracks_with_it(tmp_path):
    pytest.importorskip("tensorboard")
    assert distil(tmp_path, "--track", "tensorboard").code == 0
    [old] = (run_folder(tmp_path) / "tensorboard").iterdir()
    assert distil(tmp_path, "--track", "tensorboard", "--resume", "never").code == 0
    [new] = (run_folder(tmp_path) / "tensorboard").iterdir()
    assert new != old
