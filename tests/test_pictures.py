import numpy as np
import pytest
import torch
from PIL import Image

from common.report import pictures

pytestmark = pytest.mark.usefixtures("whole_module")


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
    pictures.draw_images(tmp_path / "images.png", images, names(classes), "a title")
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
    pictures.draw_images(tmp_path / "images.png", images, names(2), "")
    rgb = pixels(tmp_path / "images.png")
    red_rows, red_columns = np.nonzero(reddish(rgb))
    black_rows, black_columns = np.nonzero(rgb.max(axis=-1) < 10)
    assert len(red_rows) > 0.2 * len(black_rows)
    assert (red_rows.mean() > black_rows.mean()) == (place in (2, 3))
    assert (red_columns.mean() > black_columns.mean()) == (place in (1, 3))


def test_brightness_is_absolute(tmp_path):
    """A grey image stays grey: nothing is stretched to the range of the picture."""
    pictures.draw_images(tmp_path / "images.png", torch.full((4, 1, 8, 8), 0.5), names(2), "")
    assert area(tmp_path / "images.png", lambda rgb: (abs(rgb - 127) < 3).all(axis=-1)) > 0.4


@pytest.mark.parametrize("place", range(4))
def test_a_volume_is_drawn_at_its_place(tmp_path, place):
    """Two classes of two: a class is a row, its volumes lie side by side; empty ones are white."""
    volumes = torch.zeros(4, 1, 8, 8, 8)
    volumes[place, :, 3:6, 1:7, 1:7] = 1
    pictures.draw_voxels(tmp_path / "volumes.png", volumes, ["", ""], "")
    rows, columns = np.nonzero(pixels(tmp_path / "volumes.png").max(axis=-1) < 200)
    height, width, _ = pixels(tmp_path / "volumes.png").shape
    assert 0.05 < len(rows) / (height * width) < 0.25
    assert (rows.min() > 0.4 * height) if place in (2, 3) else (rows.max() < 0.6 * height)
    assert (columns.min() > 0.4 * width) if place in (1, 3) else (columns.max() < 0.6 * width)


@pytest.mark.parametrize(
    ("classes", "count", "channels", "size"), [(10, 8, 1, 16), (1, 1, 2, 8), (25, 5, 1, 4), (2, 20, 1, 4)]
)
def test_grids_of_volumes_are_drawn(tmp_path, classes, count, channels, size):
    """The picture is as wide and high as the volumes that are shown: at most 20 classes and 16 of each."""
    volumes = torch.zeros(classes * count, channels, *[size] * 3)
    volumes[..., size // 4 : -size // 4, :, :] = 1
    pictures.draw_voxels(tmp_path / "volumes.png", volumes, names(classes), "a title")
    rgb = pixels(tmp_path / "volumes.png")
    assert (rgb.max(axis=-1) - rgb.min(axis=-1)).max() < 10  # grey
    assert (rgb.max(axis=-1) < 200).mean() > 0.2
    rows, columns = min(classes, 20), min(count, 16)
    assert rgb.shape[0] / rgb.shape[1] == pytest.approx(rows / columns, rel=0.3, abs=0.3)
    assert min(rgb.shape[:2]) > 100
    assert max(rgb.shape[:2]) < 3000


@pytest.mark.parametrize(("classes", "size"), [(1, 8), (2, 8), (10, 8), (100, 32)])
def test_masks_are_drawn(tmp_path, classes, size):
    masks = torch.zeros(classes, size, size, dtype=torch.bool)
    masks[:, : size // 2, : size // 2] = True
    pictures.draw_masks(tmp_path / "masks.png", masks, names(classes), "a title")
    assert area(tmp_path / "masks.png", lambda rgb: rgb.max(axis=-1) < 20) > 0.05


@pytest.mark.parametrize(("classes", "sides"), [(1, (4, 6, 5)), (12, (16, 16, 16))])
def test_masks_of_volumes_are_drawn(tmp_path, classes, sides):
    masks = torch.zeros(classes, *sides, dtype=torch.bool)
    pictures.draw_masks(tmp_path / "none.png", masks, names(classes), "a title")
    pictures.draw_masks(tmp_path / "all.png", ~masks, names(classes), "a title")
    dark = [area(tmp_path / name, lambda rgb: rgb.max(axis=-1) < 20) for name in ("none.png", "all.png")]
    assert dark[1] - dark[0] > 0.15


def test_masks_of_volumes_are_seen_along_each_axis():
    """Two depths, three rows, four columns: the shares of what is kept, low frequencies at the top left of each."""
    masks = np.zeros((1, 2, 3, 4), dtype=bool)
    masks[0, :, 1, 2] = True
    (drawn,) = pictures.shares_along_axes(masks)
    assert drawn.shape == (3 + 2 + 2, 4 + 2 + 2)
    front, side, top = drawn[:3, :4], drawn[:3, 6:], drawn[5:, :4]
    assert {tuple(position): front[tuple(position)] for position in np.argwhere(front)} == {(1, 2): 1}
    assert {tuple(position): side[tuple(position)] for position in np.argwhere(side)} == {(1, 0): 1 / 4, (1, 1): 1 / 4}
    assert {tuple(position): top[tuple(position)] for position in np.argwhere(top)} == {(0, 2): 1 / 3, (1, 2): 1 / 3}
    assert np.isnan(drawn).sum() == drawn.size - front.size - side.size - top.size


@pytest.mark.parametrize("losses", [[], [(0, 0.0)], [(0, 3.0)], [(i, 1.0 / (i + 1)) for i in range(50)]])
def test_curves_are_drawn(tmp_path, losses):
    points = [{"iteration": 0, "mean": 0.1, "std": 0.0}, {"iteration": 50, "mean": 0.5, "std": 0.02}]
    pictures.draw_curves(tmp_path / "curves.png", losses, points)
    assert len(np.unique(pixels(tmp_path / "curves.png").reshape(-1, 3), axis=0)) > 50


def test_names_are_taken_as_they_are(tmp_path):
    r"""Dollar signs are not mathematics ($_$ would be refused), and a long name leaves room for the pictures."""
    labels = [r"$_$", "a long name " * 20]
    pictures.draw_images(tmp_path / "images.png", torch.zeros(2, 1, 8, 8), labels, "folder:/data/$_$")
    pictures.draw_masks(tmp_path / "masks.png", torch.ones(2, 8, 8, dtype=torch.bool), labels, "50 % of $_$")
    for name in ("images.png", "masks.png"):
        assert area(tmp_path / name, lambda rgb: rgb.max(axis=-1) < 20) > 0.15


def test_accuracies_are_drawn_from_the_worst_to_the_best(tmp_path):
    """The lowest is dark, the highest yellow, wherever they stand; one cell alone is drawn too."""
    table = np.array([[10.0, 20.0], [30.0, 90.0]])
    for name, percent in (("a", table), ("b", table[::-1])):
        pictures.draw_accuracies(
            tmp_path / f"{name}.png", percent, ["fog", "snow"], ["level 1", "level 5"], "a $ title"
        )
        rgb = pixels(tmp_path / f"{name}.png")
        rgb = rgb[:, : rgb.shape[1] * 7 // 10]  # without the scale
        yellow_rows, _ = np.nonzero((rgb[..., 0] > 220) & (rgb[..., 1] > 200) & (rgb[..., 2] < 80))
        purple_rows, _ = np.nonzero((abs(rgb - [68, 1, 84]) < 12).all(axis=-1))
        assert (yellow_rows.mean() > purple_rows.mean()) == (name == "a")
    pictures.draw_accuracies(tmp_path / "one.png", np.array([[50.0]]), ["v6"], ["accuracy"], "")
    assert (tmp_path / "one.png").is_file()
