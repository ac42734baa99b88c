"""What is shown of a synthetic-set file."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import frequency
from common.report import pictures
from common.report.description import clipped, describe_set
from common.report.show import ShowOptions, draw, energy_by_frequency, show, shown, visible
from common.synset.file import load_synset, save_synset
from common.synset.synset import SynSet, SynSetArgs
from common.system.seeds import generator
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("whole_module")


def some_set(im_size=(8, 8), channel=3, k=16, transform="dct"):
    args = SynSetArgs(channel, 2, im_size, torch.device("cpu"), 1, k, 1.0, 0.5, transform=transform)
    images = torch.randn(20, channel, *im_size, generator=generator(0, "images"))
    synset = SynSet(args)
    synset.init(images, torch.arange(20) % 2, [torch.arange(0, 20, 2), torch.arange(1, 20, 2)])
    return synset


@pytest.mark.parametrize("transform", ["dct", "dft", "dwt"])
def test_the_energy_is_that_of_the_images(transform):
    """Parseval: summed over all positions it is the mean square norm of a channel, by frequency that of the mask's."""
    synset = some_set(transform=transform)
    values, energy = energy_by_frequency(synset)
    ranks = frequency.frequencies(synset.im_size, transform)
    counts = torch.tensor([(ranks == value).sum() for value in values])
    images = synset.get(need_copy=True)[0].unflatten(0, (2, -1))
    expected = images.square().sum(dim=(3, 4)).mean(dim=(1, 2))
    torch.testing.assert_close((energy * counts).sum(dim=1), expected, rtol=1e-4, atol=1e-6)
    kept = synset.mask.flatten(1)
    for c in range(2):
        there = torch.isin(values, ranks.flatten()[kept[c]])
        assert torch.equal(energy[c] > 0, there)


def test_images_are_shown_as_they_look():
    images = torch.tensor([-1.0, 0.0, 3.0]).view(3, 1, 1, 1)
    assert visible(images, {"mean": [0.5], "std": [0.25]}).flatten().tolist() == [0.25, 0.5, 1.0]
    stretched = [0.0, 0.25, 1.0]
    assert visible(images, {}).flatten().tolist() == stretched
    assert visible(images, {"mean": [0.0], "std": [1.0], "zca": {"eps": 0.1}}).flatten().tolist() == stretched


def test_what_a_picture_cannot_show_is_told():
    scaled = {"mean": [0.5], "std": [0.25]}
    images = torch.tensor([-16.4, 20.0, 0.0, 0.0]).view(4, 1, 1, 1)
    pixels, remark = shown(images, scaled)
    assert pixels.flatten().tolist() == [0.0, 1.0, 0.5, 0.5]
    assert remark == "50.0 % of the pixel values (-3.60 to 5.50) lie outside 0..1 and are clipped"
    assert shown(images.clamp(-2, 2), scaled)[1] == ""
    assert shown(images.clamp(-2.005, 2), scaled)[1] == ""  # -0.00125: black, to 8 bits
    assert shown(images, {})[1] == "values are stretched from -16.40 (black) to 20.00 (white)"
    many = torch.zeros(2000)
    many[0] = -1
    assert clipped(many).startswith("less than 0.1 % of the pixel values (-1.00 to 0.00)")


def test_pictures_and_the_command_say_what_they_clip(tmp_path, capsys, monkeypatch):
    titles = []
    drawn = pictures.draw_images
    monkeypatch.setattr(pictures, "draw_images", lambda *args: (titles.append(args[-1]), drawn(*args)))
    file = save_synset(some_set(), tmp_path / "set.safetensors", {"mean": [0.2] * 3, "std": [0.5] * 3})
    images = load_synset(file)[0].get(need_copy=True)[0] * 0.5 + 0.2
    outside = f"{100 * ((images < -0.5 / 255) | (images > 1 + 0.5 / 255)).float().mean():.1f} % of the pixel values"
    show(ShowOptions(str(file)))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pictures ")]
    assert line.split(maxsplit=1)[1].startswith(outside)
    assert titles[0].splitlines()[1].startswith(outside)


def test_energies_are_drawn_by_frequency_at_the_size_of_mnist():
    """A set that keeps all positions at one energy: each of the 55 frequencies has it, where 86 were drawn."""
    synset = some_set((28, 28), 1, 784)
    scale = frequency.orthonormal_scale((28, 28)).flatten().float()
    with torch.no_grad():
        synset.coefficients.copy_((scale[synset.positions.long()] * synset.positions.sub(400).sign())[:, None, None])
    values, energy = energy_by_frequency(synset)
    assert len(values) == 55
    assert (values.diff() > 0.01).all()
    # Position 400 alone, of sign 0, leaves a gap: frequency (14 + 8) / 28 has one of its 23 positions less.
    expected = torch.ones(55)
    expected[22] = 22 / 23
    torch.testing.assert_close(energy, expected.expand(2, 55))


@pytest.mark.parametrize(("im_size", "transform", "pictures"), [
    ((8, 8), "dct", 3), ((8, 8), "identity", 2), ((8, 8, 8), "dct", 3),
])  # fmt: skip
def test_pictures_of_any_set(tmp_path, im_size, transform, pictures):
    paths = draw(
        some_set(im_size, 1, 128 if len(im_size) == 3 else 32, transform),
        {"class_names": ["a", "b"]},
        tmp_path / "deep" / "er",
    )
    assert len(paths) == pictures
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 100
        assert pixels.std() > 5  # not a blank page


def test_a_set_in_words():
    stated = {
        "dataset": "folder:/a/b", "objective": "DM", "network": "ConvNet", "version": "1",
        "channel": 3, "num_classes": 2, "im_size": [8, 8], "ipc": 1, "msz_per_channel": 16, "transform": "dct",
        "selection": "energy", "accuracy": {"mean": 0.5, "std": 0.01, "n": 3, "network": "ConvNet"},
    }  # fmt: skip
    assert describe_set(stated) == {
        "dataset": "folder-b",
        "budget": "1 image per class (ipc), 2 classes",
        "images": "4 per class, 8 x 8 pixels, 3 channels",
        "coefficients": "16 of 64 DCT coefficients per channel, chosen by energy; 384 numbers, 1.5 kB",
        "objective": "DM",
        "network": "ConvNet",
        "accuracy": "50.00 +- 1.00 % (3 x ConvNet), measured on the test images",
        "code": "1",
    }
    unknown = {"dataset": None, "network": None, "model": None, "accuracy": None, "transform": "identity"}
    rows = describe_set(stated | unknown | {"msz_per_channel": 64, "ipc": 2, "channel": 1})
    assert [label for label, text in rows.items() if text == "unknown"] == ["dataset", "network", "accuracy"]
    assert rows["budget"].startswith("2 images per class")
    assert rows["images"] == "2 per class, 8 x 8 pixels, 1 channel"
    assert rows["coefficients"].startswith("all 64 pixels per channel; ")


def test_the_command_says_and_draws(tmp_path):
    synset = some_set()
    accuracy = {"mean": 0.5, "std": 0.01, "n": 3, "network": "ConvNet"}
    metadata = {"dataset": "folder:/a/b", "objective": "DM", "accuracy": accuracy, "class_names": ["a", "b"]}
    file = save_synset(synset, tmp_path / "set.safetensors", json.loads(json.dumps(metadata)))
    words = [sys.executable, "-m", "common.report", "show", str(file)]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in said[:-4]}
    remark = shown(synset.get(need_copy=True)[0], metadata)[1]
    assert remark.startswith("values are stretched from -")
    parts = [int(count.replace(",", "")) for count in re.findall(r"\d[\d,]*(?= )", rows["file"])]
    assert parts[0] == sum(parts[1:]) == file.stat().st_size
    more = {"file": rows["file"], "pictures": remark}
    assert rows == describe_set(load_synset(file)[1]) | more
    assert re.fullmatch(rf"next: \S*python\S* -m common.report gallery {re.escape(str(tmp_path))}", said[-1])
    assert [line for line in said if line.endswith(".png")] == [
        str(tmp_path / "set_pictures" / f"{name}.png") for name in ("images", "masks", "energy")
    ]
    other = save_synset(synset, tmp_path / "set.seed1", metadata)
    show(ShowOptions(str(other)))
    assert (tmp_path / "set.seed1_pictures" / "images.png").is_file()
    missing = subprocess.run([*words[:-1], str(tmp_path / "no")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "no synthetic set at" in missing.stderr
