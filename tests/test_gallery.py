"""The gallery shows every set of a folder, beside real images that take no more bytes than the set."""

import re

import pytest
import torch

from common.datasets import draw_per_class, load_dataset
from common.gallery.beside import RealImages
from common.gallery.page import GalleryOptions, write_gallery
from common.report.description import needed_bytes
from common.synset.file import load_synset, save_synset
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from common.system.seeds import generator
from common.training.image_codecs import codec_of
from common.training.real_images import random_draws
from tests.command_line import assert_refused, call
from tests.html_pages import BROWSER, HOSTILE, assert_shown, page, words

pytestmark = pytest.mark.usefixtures("one_thread")


def save(path, dataset, classes=10, channels=1, sides=(8, 8), k=16, **metadata):
    """A set of random images in a file."""
    synset = SynSet(SynSetArgs(channels, classes, sides, torch.device("cpu"), 1, k, 1.0, 0.5))
    count = classes * synset.num_per_class
    images = torch.randn(count, channels, *sides, generator=generator(0, "images"))
    synset.init(images, synset.labels, list(torch.arange(count).view(classes, -1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {"dataset": dataset, "mean": [0.5] * channels, "std": [0.3] * channels, "objective": "DM", **metadata}
    save_synset(synset, path, stored)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two different sets, a copy of one, a set of unknown images, and two files that are no sets."""
    path = tmp_path_factory.mktemp("runs")
    first = save(path / "a" / "synset.safetensors", "digits")
    (path / "a" / "synset_best.safetensors").write_bytes(first.read_bytes())
    save(path / "b" / "synset.safetensors", "digits", k=4, class_names=[HOSTILE, *"123456789"])
    save(path / "c.safetensors", None, classes=22)
    (path / "damaged.safetensors").write_bytes(first.read_bytes()[:-5])
    (path / "notes.txt").write_text("x")
    return path


@pytest.fixture(scope="module")
def gallery(folder):
    return write_gallery(GalleryOptions(str(folder)))


def test_every_set_is_shown_once(gallery, folder):
    text = page(gallery)
    assert gallery == folder / "gallery.html"
    read = words(text)
    assert f"3 synthetic sets in {folder.name}" in read
    assert re.findall(r"DM on \S+ (\S+)", read) == ["a/synset.safetensors", "b/synset.safetensors", "c.safetensors"]
    assert text.count('synthetic image 1"') == 30
    assert text.count(", synthetic image ") == 10 * 4 + 10 * 8 + 10 * 4
    assert "The first 8 of 16 images per class." in read
    assert "The first 10 of 22 classes." in read
    assert "Not shown: 1 of the files damaged.safetensors: " in read
    assert "No real images: the file does not say which dataset the set was made of." in read
    assert HOSTILE in read


def test_real_images_take_no_more_than_the_set(folder):
    synset, metadata = load_synset(folder / "a" / "synset.safetensors")
    found = RealImages("jpeg", None).of(synset, metadata)
    budget = needed_bytes(synset.budget()) / 10
    assert budget == 320
    told = re.search(r"(\d+) to (\d+) bytes per class, without headers", found.told)
    assert int(told[2]) <= budget
    assert found.told.endswith("the budget is 320 bytes per class.")
    # The same random images as those of --baseline random --seed 0, in the quality that is told.
    data = load_dataset("digits")[0]
    first = draw_per_class(data, len(found.images[0]), random_draws(0, 0))[0, 0]
    codec, quality = codec_of("jpeg", 1), int(re.search(r"quality (\d+)", found.told)[1])
    pixels = data.denormalise(data.batch(first[None])).mul(255).round().to(torch.uint8).numpy()[0]
    expected = codec.decode(codec.encode(pixels, quality, True), 1)
    torch.testing.assert_close(found.images[0][0], torch.from_numpy(expected) / 255, atol=1e-5, rtol=0)


def test_headers_are_left_out_where_whole_files_do_not_fit(tmp_path, monkeypatch):
    """A JPEG of 8 x 8 pixels takes more than 150 bytes, most of them headers."""
    synset, metadata = load_synset(save(tmp_path / "s.safetensors", "digits"))
    monkeypatch.setattr(synset, "budget", lambda: {"coefficient_bytes": 1400, "position_bytes": 100})
    found = RealImages("jpeg", None).of(synset, metadata)
    assert found.told.endswith("the budget is 150 bytes per class without headers.")
    assert len(found.images) == 10


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ({"dataset": "MNIST"}, "No real images: MNIST is not in "),
        ({"dataset": "digits", "classes": 3}, "No real images: digits has 10 classes, the set 3."),
        ({"dataset": "nothing"}, "No real images: there is no dataset 'nothing'"),
    ],
)
def test_what_cannot_stand_beside_a_set_is_said(tmp_path, stored, why):
    save(tmp_path / "s.safetensors", **stored)
    path = write_gallery(GalleryOptions(str(tmp_path), data_path=str(tmp_path / "data")))
    assert why in words(page(path))
    assert "real image 1" not in path.read_text()


def test_volumes_are_shown_alone(tmp_path):
    save(tmp_path / "s.safetensors", "3D-MNIST", sides=(8, 8, 8), k=256)
    path = write_gallery(GalleryOptions(str(tmp_path), stored_as="none", output=str(tmp_path / "x.html")))
    text = page(path)
    assert path.name == "x.html"
    assert text.count(", synthetic image ") == 10 * 2
    assert "No real images" not in text


def test_the_command_writes_it(tmp_path):
    save(tmp_path / "s.safetensors", "digits")
    result = call("common/report/__main__.py", "gallery", tmp_path, "--stored_as", "png")
    assert (result.code, result.out.split()) == (0, [str(tmp_path / "gallery.html")])
    assert "as PNG" in words(page(tmp_path / "gallery.html"))
    (tmp_path / "empty").mkdir()
    assert_refused(call("common/report/__main__.py", "gallery", tmp_path / "empty"), "holds no synthetic set")
    assert_refused(call("common/report/__main__.py", "gallery", tmp_path / "no"), "is not a folder")
    with pytest.raises(InputError, match="cannot write"):
        write_gallery(GalleryOptions(str(tmp_path), stored_as="none", output=str(tmp_path / "empty")))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_all_of_it_at_any_width(gallery, tmp_path):
    text = gallery.read_text(encoding="utf-8")
    assert_shown(text, tmp_path, images=text.count("<img "))
