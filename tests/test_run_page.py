"""A run's page says what the run found, needs nothing but itself, and runs nothing that came from a file."""

import html
import json
import re
import shutil

import pytest
import torch

from common import recipes
from common.config.command_line import options_with_sources, parse
from common.report.record import read_run
from common.report.run_page import write_run_report
from common.synset.file import load_synset, save_synset
from common.synset.synset import SynSet, SynSetArgs
from DM import distill as dm
from tests.command_line import TINY, assert_refused, call, run_folder
from tests.html_pages import BROWSER, HOSTILE, assert_shown, page, words

pytestmark = pytest.mark.usefixtures("whole_module")
FLAGS = ["--Iteration", "2", "--eval_it", "1", "--num_eval", "1", "--epoch_eval_train", "0", "--eval_mode", "C"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, whole_module):
    """A run of two networks a point."""
    path = tmp_path_factory.mktemp("runs")
    result = call("DM/distill.py", *TINY, *FLAGS, "--name", "run", "--save_path", path)
    assert result.code == 0, result.err
    return run_folder(path)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


def change(path, update):
    content = json.loads(path.read_text())
    update(content)
    path.write_text(json.dumps(content))


def test_a_finished_run_leaves_a_report_of_what_it_found(finished):
    text = page(finished / "report.html")
    read = words(text)
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("start", "last", "best_on_test"):
        assert f"{100 * summary[key]['mean']:.2f} ± {100 * summary[key]['std']:.2f} %" in read
    for name, figures in summary["last"]["networks"].items():
        assert f"{name} {100 * figures['mean']:.2f} ± {100 * figures['std']:.2f}" in read
    for part in (
        "DM on digits, ipc 1", "finished: 2 updates", "4 synthetic images per class, 16 of 64 DCT coefficients kept",
        "energy rule", "1 network after 2 updates", summary["version"], "peak memory, cpu",
    ):  # fmt: skip
        assert part in read
    assert text.count('alt="class ') == 40
    assert text.count('alt="positions kept') == 10
    assert text.count("data:image/svg+xml") == 3


def test_what_a_run_was_reduced_to_is_said(finished):
    """The recipe of the digits has 150 updates, three networks of 300 epochs and 128 real images."""
    reduced, changed = read_run(finished).departures()
    assert reduced == [
        "2 of 150 updates", "1 of 3 networks per evaluation", "0 of 300 epochs per evaluation network",
        "16 of 128 real images per class and update",
    ]  # fmt: skip
    assert sorted(changed) == ["eval_mode C instead of S", "model ConvNetD1W32 instead of ConvNetD3"]
    read = words(page(finished / "report.html"))
    assert f"reduced: {', '.join(reduced)}" in read
    assert f"differs from the recipe: {', '.join(changed)}" in read


def test_a_run_by_its_recipe_is_not_called_reduced(folder):
    def by_recipe(config):
        for entry in config["options"].values():
            entry["value"] = entry.get("instead_of", entry["value"])

    change(folder / "config.json", by_recipe)
    read = words(page(write_run_report(folder)))
    assert "reduced" not in read
    assert "differs from the recipe" not in read


def test_the_published_figure_stands_beside_ours(folder):
    read = words(page(write_run_report(folder)))
    assert "No accuracy is known to have been published" in read
    assert "Published:" not in read
    assert "difference" not in read  # no table that has nothing to compare

    def published(config):
        config["objective"] = "TM"
        config["options"]["dataset"]["value"] = "CIFAR10"

    change(folder / "config.json", published)
    theirs = recipes.find("TM", "CIFAR10", 1).published
    ours = 100 * json.loads((folder / "summary.json").read_text())["best_on_test"]["mean"]
    read = words(page(write_run_report(folder)))
    assert f"{theirs['accuracy']} ± {theirs['std']} {ours - theirs['accuracy']:+.2f}" in read
    assert theirs["source"] in read
    assert "This run is reduced, so the difference says nothing about the method." in read

    change(folder / "config.json", lambda config: config["options"]["transform"].update(value="identity"))
    assert theirs["source"] not in words(page(write_run_report(folder)))  # it is not that of plain pixels


def test_the_command_repeats_the_run(finished):
    command = read_run(finished).command()
    shown = re.search(r'<pre class="command">(.*?)</pre>', (finished / "report.html").read_text())[1]
    assert re.sub("</?span>", "", shown) == html.escape(command, quote=False)
    assert re.findall("<span>(.*?)</span>", shown) == html.escape(command, quote=False).split(" ")
    python, script, *flags = command.split()
    assert (python, script) == ("python", "DM/distill.py")
    options = json.loads((finished / "config.json").read_text())["options"]
    again = options_with_sources(*parse(dm.Options, "DM", flags), "DM")
    assert json.loads(json.dumps(again)) == options


@pytest.mark.parametrize(
    ("objective", "dataset", "source", "script"),
    [
        ("DC", "digits", "flag", "DC/distill.py --dataset digits"),
        ("ImageNet-abcde/TM", "imagenet-a", "default", "ImageNet-abcde/distill.py --objective TM --"),
        ("DM", "3D-MNIST", "default", "3D-MNIST/distill.py --"),
        ("DM", "folder:a b", "flag", "DM/distill.py --dataset 'folder:a b'"),
    ],
)
def test_the_command_names_the_script_that_made_the_run(folder, objective, dataset, source, script):
    def other(config):
        config["objective"] = objective
        config["options"]["dataset"] = {"value": dataset, "source": source}

    change(folder / "config.json", other)
    assert read_run(folder).command().startswith(f"python {script}")


def test_an_unfinished_run_has_a_report(folder):
    (folder / "summary.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    change(folder / "config.json", lambda config: config["options"]["Iteration"].update(value=7))
    read = words(page(write_run_report(folder)))
    assert "unfinished: 2 of 7 updates" in read

    losses = [line for line in lines if "loss" in json.loads(line)]
    (folder / "metrics.jsonl").write_text("\n".join([*losses, '{"iteration": 2, "lo']))  # killed while it wrote
    (folder / "synset.safetensors").unlink()
    text = page(write_run_report(folder))
    assert text.count("<img") == 1  # the losses
    for part in ("unfinished: 2 of 7 updates", "Nothing has been evaluated yet", "no synthetic set yet"):
        assert part in words(text)

    (folder / "metrics.jsonl").unlink()
    assert "unfinished: 0 of 7 updates" in words(page(write_run_report(folder)))


def test_names_from_files_are_text(folder):
    synset, metadata = load_synset(folder / "synset.safetensors")
    save_synset(synset, folder / "synset.safetensors", metadata | {"class_names": [HOSTILE, *"abcdefghi"]})

    def hostile(config):
        config["options"]["model"]["value"] = config["version"] = HOSTILE
        config["hardware"] |= {HOSTILE: HOSTILE, "half": "\ud800", "cpu": HOSTILE}
        config["options"]["name"] = {"value": HOSTILE, "source": "flag"}

    change(folder / "config.json", hostile)
    read = words(page(write_run_report(folder)))
    assert read.count(HOSTILE) > 6


def test_long_runs_are_thinned_and_say_so(folder):
    lines = [{"iteration": n, "loss": 1.0 + n} for n in range(2500)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Each point is the mean of 3 updates." in words(page(write_run_report(folder)))


@pytest.mark.parametrize(
    ("im_size", "k", "transform", "classes", "pictures", "said"),
    [
        ((8, 8, 8), 256, "dct", 2, 2 * 2, "Volumes as lit surfaces"),
        ((8, 8), 2, "dct", 22, 20 * 16, "The first 20 of 22 classes. The first 16 of 32 images per class."),
        ((8, 4), 32, "identity", 2, 2, "positions are pixels"),
    ],
)
def test_synthetic_sets_of_any_kind(folder, im_size, k, transform, classes, pictures, said):
    synset = SynSet(SynSetArgs(1, classes, im_size, "cpu", 1, k, 1.0, 0.5, transform=transform))
    count = classes * synset.num_per_class
    images = torch.rand(count, 1, *im_size, generator=torch.Generator().manual_seed(0))
    synset.init(images, synset.labels, list(torch.arange(count).view(classes, -1)))
    save_synset(synset, folder / "synset.safetensors", {})
    text = page(write_run_report(folder))
    assert text.count('alt="class ') == pictures
    assert said in words(text)
    assert text.count("data:image/svg+xml") == (2 if transform == "identity" else 3)
    assert "Values are stretched from" in words(text)


def test_pixels_that_are_clipped_are_told(folder):
    synset, metadata = load_synset(folder / "synset.safetensors")
    with torch.no_grad():
        synset.coefficients.mul_(10)
    save_synset(synset, folder / "synset.safetensors", metadata)
    images = synset.get(need_copy=True)[0] * metadata["std"][0] + metadata["mean"][0]
    outside = f"({images.min():.2f} to {images.max():.2f}) lie outside 0..1 and are clipped."
    assert outside in words(page(write_run_report(folder)))


def test_the_command_line_writes_it_anew(folder):
    before = words((folder / "report.html").read_text())
    (folder / "report.html").unlink()
    result = call("common/report/__main__.py", "html", folder)
    assert (result.code, result.out.split()) == (0, [str(folder / "report.html")])
    assert words(page(folder / "report.html")) == before
    assert_refused(call("common/report/__main__.py", "html", folder.parent), "is not the folder of a run")


def test_a_report_that_cannot_be_written_does_not_lose_the_run(tmp_path):
    folder = run_folder(tmp_path)
    (folder / "report.html").mkdir(parents=True)  # in its place
    result = call("DM/distill.py", *TINY, *FLAGS, "--name", "run", "--save_path", tmp_path)
    assert result.code == 0, result.err
    assert "no report.html (cannot write" in result.out
    assert (folder / "summary.json").exists()


def test_a_run_that_starts_over_takes_its_report_away(finished, tmp_path):
    path = run_folder(tmp_path)
    shutil.copytree(finished, path)
    flags = ["--name", "run", "--save_path", tmp_path, "--resume", "never", "--data_path", tmp_path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.runs.output.write_run_report", lambda folder: folder)
        assert call("DM/distill.py", *TINY, *FLAGS, *flags).code == 0
    assert not (path / "report.html").exists()


# -- in a browser ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_all_of_it_at_any_width(finished, tmp_path):
    assert_shown((finished / "report.html").read_text(encoding="utf-8"), tmp_path, images=53)
