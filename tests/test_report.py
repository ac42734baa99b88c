import numpy as np
import pytest
import torch
from PIL import Image

from common import report


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB")).astype(int)


def names(count):
    return [f"class {c}" for c in range(count)]


def area(path, chosen):
    """Share of the pixels for which `chosen` holds."""
    return chosen(pixels(path)).mean()


def reddish(rgb):
    return (rgb[..., 0] > 200) & (rgb[..., 1:].max(axis=-1) < 60)


@pytest.mark.parametrize(
    ("channels", "classes", "size", "count"),
    [(1, 2, (8, 8), 1), (3, 2, (6, 12), 2), (1, 100, (8, 8), 5), (3, 10, (32, 32), 4)],
)
def test_images_are_drawn(tmp_path, channels, classes, size, count):
    images = torch.rand(count * classes, channels, *size, generator=torch.Generator().manual_seed(0))
    report.draw_images(tmp_path / "images.png", images, names(classes), "a title")
    rgb = pixels(tmp_path / "images.png")
    assert len(np.unique(rgb.reshape(-1, 3), axis=0)) > 50
    coloured = (rgb.max(axis=-1) - rgb.min(axis=-1) > 40).mean()
    assert (coloured > 0.2) == (channels == 3)
    assert [path.name for path in tmp_path.iterdir()] == ["images.png"]


@pytest.mark.parametrize("place", range(4))
def test_an_image_is_drawn_at_its_place_in_its_colour(tmp_path, place):
    """Two classes of two: a class is a row, its images lie side by side."""
    images = torch.zeros(4, 3, 8, 8)
    images[place, 0] = 1
    report.draw_images(tmp_path / "images.png", images, names(2), "")
    rgb = pixels(tmp_path / "images.png")
    red_rows, red_columns = np.nonzero(reddish(rgb))
    black_rows, black_columns = np.nonzero(rgb.max(axis=-1) < 10)
    assert len(red_rows) > 0.2 * len(black_rows)
    assert (red_rows.mean() > black_rows.mean()) == (place in (2, 3))
    assert (red_columns.mean() > black_columns.mean()) == (place in (1, 3))


def test_brightness_is_absolute(tmp_path):
    """A grey image stays grey: nothing is stretched to the range of the picture."""
    report.draw_images(tmp_path / "images.png", torch.full((4, 1, 8, 8), 0.5), names(2), "")
    assert area(tmp_path / "images.png", lambda rgb: (abs(rgb - 127) < 3).all(axis=-1)) > 0.4


@pytest.mark.parametrize(("classes", "size"), [(1, 8), (2, 8), (10, 8), (100, 32)])
def test_masks_are_drawn(tmp_path, classes, size):
    masks = torch.zeros(classes, size, size, dtype=torch.bool)
    masks[:, : size // 2, : size // 2] = True
    report.draw_masks(tmp_path / "masks.png", masks, names(classes), "a title")
    assert area(tmp_path / "masks.png", lambda rgb: rgb.max(axis=-1) < 20) > 0.05


@pytest.mark.parametrize("losses", [[], [(0, 0.0)], [(0, 3.0)], [(i, 1.0 / (i + 1)) for i in range(50)]])
def test_curves_are_drawn(tmp_path, losses):
    points = [{"iteration": 0, "mean": 0.1, "std": 0.0}, {"iteration": 50, "mean": 0.5, "std": 0.02}]
    report.draw_curves(tmp_path / "curves.png", losses, points)
    assert len(np.unique(pixels(tmp_path / "curves.png").reshape(-1, 3), axis=0)) > 50


def test_names_are_taken_as_they_are(tmp_path):
    r"""Dollar signs are not mathematics ($_$ would be refused), and a long name leaves room for the pictures."""
    labels = [r"$_$", "a long name " * 20]
    report.draw_images(tmp_path / "images.png", torch.zeros(2, 1, 8, 8), labels, "folder:/data/$_$")
    report.draw_masks(tmp_path / "masks.png", torch.ones(2, 8, 8, dtype=torch.bool), labels, "50 % of $_$")
    for name in ("images.png", "masks.png"):
        assert area(tmp_path / name, lambda rgb: rgb.max(axis=-1) < 20) > 0.15
