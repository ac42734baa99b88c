"""Pages say what their runs found, need nothing but themselves, and run nothing that came from a file."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from common import recipes
from common.config.command_line import described, parse
from common.report.record import read_run
from common.report.run_page import write_run_report
from common.synset.file import load_synset, save_synset
from common.synset.synset import SynSet, SynSetArgs
from DM import distill as dm
from reproduction.page import STATES, write_results_page
from tests.command_line import TINY, assert_refused, call, run_folder
from tests.left_out import leave_out_report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
FLAGS = ["--Iteration", "2", "--eval_it", "1", "--num_eval", "1", "--epoch_eval_train", "0", "--eval_mode", "C"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two networks a point."""
    path = tmp_path_factory.mktemp("runs")
    result = call("DM/distill.py", *TINY, *FLAGS, "--name", "run", "--save_path", path)
    assert result.code == 0, result.err
    return run_folder(path)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def page(path):
    """The page's HTML, having seen that it is whole, needs nothing from elsewhere and runs nothing."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")
    assert "@import" not in text
    assert "url(" not in text
    tags = Tags(text).found
    assert ("html", {"lang": "en-GB"}) in tags
    assert "title" in [tag for tag, _ in tags]
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "srcdoc", "action")]
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert not re.match(r"\w+:|/", attributes.get("href", ""))
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    return text


def words(text):
    """What is read on the page."""
    visible = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", visible)).split())


def change(path, update):
    content = json.loads(path.read_text())
    update(content)
    path.write_text(json.dumps(content))


# -- a run -------------------------------------------------------------------------------------------------------


def test_a_finished_run_leaves_a_report_of_what_it_found(finished):
    text = page(finished / "report.html")
    read = words(text)
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("start", "last", "best_on_test"):
        assert f"{100 * summary[key]['mean']:.2f} ± {100 * summary[key]['std']:.2f} %" in read
    for name, figures in summary["last"]["networks"].items():
        assert f"{name} {100 * figures['mean']:.2f} ± {100 * figures['std']:.2f}" in read
    for part in (
        "DM on digits, ipc 1", "finished: 2 updates", "4 synthetic images a class, 16 of 64 DCT coefficients kept",
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
        "2 of 150 updates", "1 of 3 networks an evaluation", "0 of 300 epochs of their training",
        "16 of 128 real images a class and update",
    ]  # fmt: skip
    assert sorted(changed) == ["eval_mode C instead of S", "model ConvNetD1W32 instead of ConvNetD3"]
    read = words(page(finished / "report.html"))
    assert f"reduced: {', '.join(reduced)}" in read
    assert f"other than the recipe: {', '.join(changed)}" in read


def test_a_run_by_its_recipe_is_not_called_reduced(folder):
    def by_recipe(config):
        for entry in config["options"].values():
            entry["value"] = entry.get("instead_of", entry["value"])

    change(folder / "config.json", by_recipe)
    read = words(page(write_run_report(folder)))
    assert "reduced" not in read
    assert "other than the recipe" not in read


def test_the_published_figure_stands_beside_ours(folder):
    assert "No accuracy is known to have been published" in words(page(write_run_report(folder)))

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
    assert f"<pre>{html.escape(command)}</pre>" in (finished / "report.html").read_text()
    python, script, *flags = command.split()
    assert (python, script) == ("python", "DM/distill.py")
    options = json.loads((finished / "config.json").read_text())["options"]
    again = described(*parse(dm.Options, "DM", flags), "DM")
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
        config["options"]["model"]["value"] = config["version"] = config["objective"] = HOSTILE
        config["hardware"] = {HOSTILE: HOSTILE, "half": "\ud800"}
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
        ((8, 8), 2, "dct", 22, 20 * 16, "The first 20 of 22 classes. The first 16 of 32 images a class."),
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
        leave_out_report(patch)
        assert call("DM/distill.py", *TINY, *FLAGS, *flags).code == 0
    assert not (path / "report.html").exists()


# -- many runs ---------------------------------------------------------------------------------------------------


def rows(picture):
    nothing = dict.fromkeys(("ours", "n", "difference", "time", "memory", "hardware", "version", "note", "command"), "")
    plain = {"scale": "full", "published": "unknown", "picture": None, "report": None, **nothing}
    full = {
        "table": "Trajectories", "cell": "CIFAR10, ipc 1", "state": "finished", "ours": "60.12 ± 0.40", "n": 5,
        "published": "60.6 ± 0.8", "difference": "-0.48", "time": "1 h 20 min", "memory": "1.2 GB", "hardware": "a GPU",
        "version": "0.1.0-abc", "command": "python TM/distill.py --dataset CIFAR10 --ipc 1", "picture": picture,
        "report": "TM/CIFAR10/ipc1/run/report.html",
    }  # fmt: skip
    others = [
        {"table": "Trajectories" if state == "running" else "ImageNet", "cell": f"cell of {state}", "state": state}
        for state in STATES[1:]
    ]
    short = {**full, "scale": "short", "note": "scale short: 40 of 15000 updates", "report": "javascript:alert(1)"}
    hostile = dict.fromkeys(("table", "cell", "note", "command", "hardware"), HOSTILE) | {"state": "failed"}
    return [plain | row for row in (full, *others, short, hostile)]


@pytest.fixture
def results(tmp_path):
    Image.new("RGB", (2000, 1000), (200, 30, 30)).save(tmp_path / "images.png")
    path = tmp_path / "results.html"
    write_results_page(path, rows(tmp_path / "images.png"), "All <tables>", ["Read & beware.", HOSTILE])
    return path


def test_the_page_of_results_has_every_cell(results):
    text = page(results)
    read = words(text)
    assert read.startswith("All <tables> All <tables> Read & beware.")
    counts = {"finished": 2, "running": 1, "interrupted": 1, "failed": 2, "not started": 1}
    for state, count in counts.items():
        assert f"{count} {state}" in read
        # its label on the cells, and the one that counts them
        assert text.count(f'<span class="label {state}">') == count + 1
    assert [html.unescape(each) for each in re.findall("<h2>(.*?)</h2>", text)] == ["Trajectories", "ImageNet", HOSTILE]
    for part in ("60.12 ± 0.40", "60.6 ± 0.8", "-0.48", "1 h 20 min", "1.2 GB", "a GPU", "0.1.0-abc", "--ipc 1"):
        assert part in read
    assert read.count("scale: short") == 1
    assert text.count('href="TM/CIFAR10/ipc1/run/report.html"') == 1
    assert "javascript" not in text
    assert text.count("<img") == 2
    assert len(text) < 50_000  # the picture was made small


# -- in a browser ------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOOK = """<!DOCTYPE html><script>
const pages = PAGES, found = [], pixels = (element) => parseFloat(getComputedStyle(element).fontSize);
function look() {
  if (found.length == 3 * pages.length) {
    document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
    return;
  }
  const frame = document.createElement("iframe"), width = [400, 1280, 1920][found.length % 3];
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.srcdoc = pages[Math.floor(found.length / 3)];
  frame.onload = () => setTimeout(() => {
    const inside = frame.contentDocument, images = [...inside.images];
    found.push({
      width: frame.contentWindow.innerWidth,
      scroll: inside.documentElement.scrollWidth,
      images: images.length,
      broken: images.filter((image) => image.naturalWidth == 0).length,
      smallest: Math.min(...[...inside.querySelectorAll("main *")].map(pixels)),
      ran: Boolean(frame.contentWindow.ran || window.ran),
    });
    frame.remove();
    look();
  }, 50);
  document.body.append(frame);
}
window.onload = look;
</script><body></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_all_of_it_at_any_width(finished, results, tmp_path):
    """Nothing scrolls sideways, no picture is missing, no text is tiny, and the probe of a script does not run."""
    texts = [path.read_text(encoding="utf-8") for path in (finished / "report.html", results)]
    texts[1] = texts[1].replace("</main>", "</main><script>ran = true</script>")  # past the escaping
    given = json.dumps(texts).replace("</", "<\\/")
    (tmp_path / "look.html").write_text(LOOK.replace("PAGES", given), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [str(BROWSER), *flags.split(), profile, (tmp_path / "look.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    match = re.search(r"<pre>(\[.*?\])</pre>", shown)
    assert match, shown[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert [each["width"] for each in found] == [400, 1280, 1920] * 2
    for each in found:
        assert each["scroll"] <= each["width"]
        assert each["broken"] == 0
        assert each["smallest"] >= 13
        assert not each["ran"]
    assert found[0]["images"] == 53
    assert found[3]["images"] == 2
