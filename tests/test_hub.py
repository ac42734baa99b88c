"""hf: datasets out of parquet files and out of the library's cache; what is not clear is asked for by name."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.config.options import DataOptions
from common.config.places import run_folder
from common.datasets import ImageData, check_dataset, hub, load_dataset
from common.images import decode, encoded
from common.images.pixels import Resize
from common.system.errors import InputError
from tests.image_sets import forbid_decoding

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow.parquet", reason="comes with datasets") and sys.modules["pyarrow"]

CLASSES = ["cat", "dog", "owl"]
COLUMNS = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
SIZES = {"train": 7, "test": 5}


@pytest.fixture(autouse=True)
def library_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own for the library too, and no bars while the test's files are written."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    datasets.utils.disable_progress_bars()
    yield tmp_path / "library"
    datasets.utils.enable_progress_bars()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(split: str, gray: bool = False) -> list[np.ndarray]:
    """Images of 6 x 4 pixels, [4, 6, 3] or [4, 6]."""
    rng = np.random.default_rng(SIZES[split])
    return [rng.integers(0, 256, (4, 6) if gray else (4, 6, 3), dtype=np.uint8) for _ in range(SIZES[split])]


def table(split: str, columns: dict[str, Any] | None = None, **values: list) -> Any:
    """One split; every column of type Image has the same images unless `values` has others."""
    columns = columns or COLUMNS
    content = {}
    for name, kind in columns.items():
        made = [{"bytes": png(each), "path": None} for each in pixels_of(split)]
        content[name] = made if isinstance(kind, datasets.Image) else [i % 3 for i in range(SIZES[split])]
    return datasets.Dataset.from_dict(content | values, features=datasets.Features(columns))


def make_parquet(root: Path, layout: str = "{}-00000-of-00001.parquet", test_name: str = "test", **tables: Any) -> Path:
    for split, name in (("train", "train"), ("test", test_name)):
        file = root / layout.format(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        tables.get(split, table(split)).to_parquet(file)
    return root


def load_hub(path: Path | str, **options: Any) -> tuple[ImageData, ImageData]:
    return load_dataset(f"hf:{path}", **{"progress": False, "download": False, **options})


# --- what is read


@pytest.mark.parametrize(
    "layout", ["{}-00000-of-00001.parquet", "data/{}-00000-of-00001.parquet", "{}/part.parquet", "{}.parquet"]
)
@pytest.mark.parametrize("test", ["test", "validation", "val"])
def test_parquet_folder_is_read_as_it_is(tmp_path: Path, layout: str, test: str) -> None:
    root = make_parquet(tmp_path / "set", layout, test)
    for data, split in zip(load_hub(root), SIZES, strict=True):
        expected = torch.from_numpy(np.stack(pixels_of(split))).permute(0, 3, 1, 2)
        assert torch.equal(data.images, expected)
        assert data.labels.tolist() == [i % 3 for i in range(SIZES[split])]
        assert data.labels.dtype == torch.int64
        assert data.class_names == tuple(CLASSES)
        assert data.name == f"hf:{root}"


def test_images_are_fetched_in_pieces_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK", 2)
    train, test = load_hub(make_parquet(tmp_path / "set"), workers=3)
    for data, split in ((train, "train"), (test, "test")):
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels_of(split)))


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    train, test = load_hub(make_parquet(tmp_path / "set"))
    values = train.images.double().transpose(0, 1).flatten(1) / 255
    assert train.mean == pytest.approx(values.mean(1).tolist(), abs=1e-6)
    assert train.std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-6)
    assert (test.mean, test.std) == (train.mean, train.std)
    borrowed, _ = DataOptions(dataset=f"hf:{tmp_path / 'set'}", recipe="CIFAR10", no_download=True).load()
    assert borrowed.mean == (0.4914, 0.4822, 0.4465)


def test_gray_images_have_one_channel_unless_one_is_in_colour(tmp_path: Path) -> None:
    gray = {
        split: table(split, image=[{"bytes": png(each), "path": None} for each in pixels_of(split, gray=True)])
        for split in SIZES
    }
    train, test = load_hub(make_parquet(tmp_path / "gray", **gray))
    assert (train.channels, test.channels) == (1, 1)
    mixed, colour = load_hub(make_parquet(tmp_path / "mixed", train=gray["train"]))
    assert torch.equal(mixed.images, train.images.expand(-1, 3, -1, -1))
    assert colour.channels == 3


def test_image_size_and_mixed_sizes(tmp_path: Path) -> None:
    images = [{"bytes": png(each), "path": None} for each in pixels_of("test")]
    images[3]["bytes"] = png(np.zeros((9, 5, 3), np.uint8))
    root = make_parquet(tmp_path / "set", test=table("test", image=images))
    with pytest.raises(InputError, match=r"is 6 x 4 and image 3 .* of the split 'test' .* is 5 x 9 .*--image_size"):
        load_hub(root)
    train, test = load_hub(root, image_size=3)
    assert (train.images.shape, test.images.shape) == ((7, 3, 3, 3), (5, 3, 3, 3))
    for mode in ("crop", "squash"):
        train, _ = load_hub(root, image_size=3, resize=mode)
        expected = encoded.resized(Image.fromarray(pixels_of("train")[2]), Resize(3, mode))
        assert np.array_equal(train.images[2].numpy(), expected)


def test_transparent_and_turned_images_are_read_as_they_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Turned as the library itself turns them when it decodes."""
    stored = [Image.fromarray(each) for each in pixels_of("train")]
    stored[0].putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 3
    files = [io.BytesIO() for _ in stored]
    for number, (image, file) in enumerate(zip(stored, files, strict=True)):
        image.save(file, "PNG", **({"exif": exif} if number == 1 else {}))
    images = [{"bytes": file.getvalue(), "path": None} for file in files]
    root = make_parquet(tmp_path / "set", train=table("train", image=images))
    shown, _ = load_hub(root)
    assert (shown.images[0] == 255).all()
    assert torch.equal(shown.images[1], torch.from_numpy(pixels_of("train")[1]).permute(2, 0, 1).rot90(2, (1, 2)))
    assert np.array_equal(np.asarray(datasets.Image().decode_example(images[1])), shown.images[1].permute(1, 2, 0))
    assert "1 is turned as the EXIF orientation says, 1 is laid over white" in caplog.text
    plain, _ = load_hub(root, decoding="stored")
    assert np.array_equal(plain.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels_of("train")))
    assert torch.equal(plain.images[2:], shown.images[2:])


def test_unreadable_rows_are_left_out_with_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [{"bytes": png(each), "path": None} for each in pixels_of("train")]
    images[1]["bytes"] = b"no image"
    root = make_parquet(tmp_path / "set", train=table("train", image=images))
    whole, test = load_hub(make_parquet(tmp_path / "whole"))
    with pytest.raises(InputError, match=r"image 1 .* of the split 'train' .* cannot be read"):
        load_hub(root)
    train, same = load_hub(root, skip_corrupt=True)
    rest = [row for row in range(len(whole)) if row != 1]
    assert torch.equal(train.images, whole.images[rest])
    assert torch.equal(train.labels, whole.labels[rest])
    assert torch.equal(same.labels, test.labels)
    assert "1 of the 12 images of set cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        (datasets.Value("int64"), [7, -1, 7, 30, 30, -1, 7], ("-1", "7", "30")),
        (datasets.Value("string"), ["b", "a", "b", "B", "a", "a", "b"], ("B", "a", "b")),
    ],
)
@pytest.mark.parametrize("column", ["label", "labels", "fine_label", "class"])
def test_plain_values_become_classes_in_sorted_order(
    tmp_path: Path, kind: Any, values: list, names: tuple[str, ...], column: str
) -> None:
    columns = {"image": datasets.Image(), column: kind, "id": datasets.Value("int64")}
    tables = {split: table(split, columns, **{column: values[: SIZES[split]]}) for split in SIZES}
    for data in load_hub(make_parquet(tmp_path / "set", **tables)):
        assert data.class_names == names
        assert [data.class_names[label] for label in data.labels] == [str(value) for value in values[: len(data)]]


# --- what is to be chosen


TWO_OF_EACH = {
    "image": datasets.Image(),
    "mask": datasets.Image(),
    "fine": datasets.ClassLabel(names=CLASSES),
    "coarse": datasets.ClassLabel(names=["all", "some", "none"]),
    "text": datasets.Value("string"),
}


def two_of_each(split: str) -> Any:
    return table(split, TWO_OF_EACH, mask=[{"bytes": png(255 - each), "path": None} for each in pixels_of(split)],
                 text=["red", "green", "red", "blue", "green", "red", "blue"][: SIZES[split]])  # fmt: skip


def test_several_columns_must_be_chosen_among(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "set", train=two_of_each("train"), test=two_of_each("test"))
    with pytest.raises(InputError, match=r"several image columns \(image, mask\): name one as in 'hf:.*\?image=image'"):
        load_hub(root)
    with pytest.raises(InputError, match=r"several label columns \(fine, coarse\).*\?image=mask&label=fine'"):
        load_hub(f"{root}?image=mask")
    with pytest.raises(InputError, match="no image column 'text' among image, mask, fine, coarse, text"):
        load_hub(f"{root}?image=text&label=fine")
    with pytest.raises(InputError, match="no label column 'mask'"):
        load_hub(f"{root}?image=mask&label=mask")
    train, _ = load_hub(f"{root}?image=mask&label=coarse")
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), 255 - np.stack(pixels_of("train")))
    assert train.class_names == ("all", "some", "none")
    assert train.name == f"hf:{root}?image=mask&label=coarse"
    again, _ = load_dataset(train.name, progress=False)
    assert torch.equal(again.images, train.images)
    assert load_hub(f"{root}?image=image&label=text")[0].class_names == ("blue", "green", "red")


def test_dataset_without_a_fitting_column(tmp_path: Path) -> None:
    columns = {"image": datasets.Image(), "score": datasets.Value("float32")}
    tables = {split: table(split, columns) for split in SIZES}
    with pytest.raises(InputError, match=r"no label column among image, score: name one as in .*label=COLUMN"):
        load_hub(make_parquet(tmp_path / "set", **tables))


def test_splits_are_found_or_chosen(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "set", "data/{}-00000-of-00001.parquet")
    table("test").to_parquet(root / "data" / "extra-00000-of-00001.parquet")
    train, test = load_hub(f"{root}?train=extra")
    assert (len(train), len(test)) == (5, 5)
    assert len(load_hub(f"{root}?test=extra")[0]) == 7
    for choice in ("test=valid", "train=all"):
        with pytest.raises(InputError, match=r"has no (test split 'valid'|train split 'all') of its own"):
            load_hub(f"{root}?{choice}")
    with pytest.raises(InputError, match="no test split 'train' of its own"):
        load_hub(f"{root}?test=train")
    (root / "data" / "test-00000-of-00001.parquet").unlink()
    (root / "data" / "extra-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match="no test split 'test' of its own, but train: give one that has two"):
        load_hub(root)


def test_configuration_is_chosen(tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_parquet(root / "one")
    make_parquet(root / "two", train=table("test"))
    names = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("one", "two"))
    (root / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    with pytest.raises(InputError, match=r"'one', 'two'.*choose one as in 'hf:.*\?config=NAME'"):
        load_hub(root)
    assert len(load_hub(f"{root}?config=two")[0]) == 5


def test_classes_and_labels_must_fit(tmp_path: Path) -> None:
    for label, told in (([-1] * 5, "holds -1 in the split 'test'"), ([0, None, 1, 2, 0], "holds None")):
        with pytest.raises(InputError, match=rf"the column 'label' .*{told}.*choose a split with labels"):
            load_hub(make_parquet(tmp_path / told[:9], test=table("test", label=label)))
    columns = {"image": datasets.Image(), "label": datasets.Value("int32")}
    tables = {split: table(split, columns, label=[4] * SIZES[split]) for split in SIZES}
    with pytest.raises(InputError, match=r"has 1 class\(es\), at least 2"):
        load_hub(make_parquet(tmp_path / "one", **tables))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(("names", "told"), [
    (["owl", "cat", "dog"], r"label 0 is 'cat' by train.* \(split 'train'\), but 'owl' by test"),
    (["cat", "dog", "owl", "yak"], r"3 classes by train.* \(split 'train'\), but 4 by test"),
])  # fmt: skip
def test_class_names_of_two_splits_must_agree(tmp_path: Path, names: list[str], told: str, kind: str) -> None:
    """The library gives the labels of all files the names of the first: 'owl' would be taken for 'cat'."""
    root = tmp_path / "set"
    other = table("test", {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    if kind == "parquet":
        make_parquet(root, test=other)
    else:
        root.mkdir()
        for split, rows in (("train", table("train")), ("test", other)):
            rows.save_to_disk(tmp_path / split)
            (root / f"{split}.arrow").write_bytes((tmp_path / split / "data-00000-of-00001.arrow").read_bytes())
    with pytest.raises(InputError, match=rf"{told}.* \(split 'test'\).*align_labels_with_mapping"):
        load_hub(root)


def test_class_names_of_two_files_of_a_split_must_agree(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "set")
    other = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES[::-1])}
    table("train", other).to_parquet(root / "train-00001-of-00002.parquet")
    with pytest.raises(InputError, match=r"label 0 is 'cat' by train-00000.*, but 'owl' by train-00001.*split 'train'"):
        load_hub(root)


def test_names_of_the_card_go_before_those_of_all_files(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "set")
    names = "".join(f"          '{n}': {name}\n" for n, name in enumerate(("Kater", "Hund", "Eule")))
    features = (
        f"  - name: image\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n        names:\n{names}"
    )
    (root / "README.md").write_text(f"---\ndataset_info:\n  features:\n{features}---\n")
    assert load_hub(root)[1].class_names == ("Kater", "Hund", "Eule")


def test_files_without_class_names_have_those_of_the_others(tmp_path: Path) -> None:
    plain = table("test", {"image": datasets.Image(), "label": datasets.Value("int64")})
    train, test = load_hub(make_parquet(tmp_path / "set", test=plain))
    assert test.class_names == train.class_names == tuple(CLASSES)
    assert test.labels.tolist() == [0, 1, 2, 0, 1]


# --- names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:", "neither a folder nor a dataset of the hub"),
        ("hf:parquet", "neither a folder nor a dataset of the hub"),
        ("hf:/no/such/folder", "neither a folder"),
        ("hf:./no", "neither a folder"),
        ("hf:owner/name?split=test", "wrong 'split': each of config, image, label, train, test"),
        ("hf:owner/name?label=", "wrong 'label'"),
        ("hf:owner/name?label=a&label=b", "wrong 'label'"),
        ("hf:owner/name?label", "write KEY=VALUE&KEY=VALUE"),
    ],
)
def test_names_are_checked_before_anything_is_read(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_dataset(name)


def test_run_folder_is_named_after_the_dataset(tmp_path: Path) -> None:
    for name in ("hf:owner/name", "hf:owner/name?label=a/b", "hf:/data/name", "hf:/data/name/?config=x"):
        check = run_folder(tmp_path, "DM", name, 1, "run")
        assert check == tmp_path / "DM" / "hf-name" / "ipc1" / "run"


# --- the cache of decoded images


def test_second_start_decodes_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_parquet(tmp_path / "set")
    first = load_hub(root)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        for before, after in zip(first, load_hub(root), strict=True):
            assert torch.equal(before.images, after.images)
            assert (before.mean, before.std, before.class_names) == (after.mean, after.std, after.class_names)
        with pytest.raises(AssertionError):
            load_hub(root, image_size=2)
    make_parquet(root, train=table("test"))
    assert len(load_hub(root)[0]) == 5


# --- what goes wrong


def test_damaged_and_missing_images_are_named(tmp_path: Path) -> None:
    images = [{"bytes": png(each), "path": None} for each in pixels_of("test")]
    cut = [*images[:4], {"bytes": images[4]["bytes"][:60], "path": None}]
    root = make_parquet(tmp_path / "cut", test=table("test", image=cut))
    with pytest.raises(InputError, match=r"image 4 \(from 0\) of the split 'test' of hf:.* cannot be read as an image"):
        load_hub(root)
    root = make_parquet(tmp_path / "none", test=table("test", image=[*images[:4], None]))
    with pytest.raises(InputError, match=r"image 4 \(from 0\) of the split 'test' of hf:.* is missing"):
        load_hub(root)


@pytest.mark.parametrize("damage", ["cut", "text", "no files"])
def test_folder_that_is_no_dataset_is_explained(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_parquet(tmp_path / "set")
    for file in root.iterdir():
        if damage == "no files":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-100] if damage == "cut" else b"not parquet")
    with pytest.raises(InputError, match=r"hf:.*set cannot be loaded \(.*\): put train-\*\.parquet and") as caught:
        load_hub(root)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_code_that_lies_beside_the_data_is_not_run(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "set")
    (root / "set.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    with pytest.raises(InputError, match="scripts are no longer supported"):
        load_hub(root)
    assert not (tmp_path / "run").exists()


def test_library_that_is_missing_or_could_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_parquet(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "__version__", "3.6.0")
        with pytest.raises(InputError, match=r"datasets 3\.6\.0 may run code.*pip install 'datasets>=4\.0'"):
            load_hub(root)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'datasets>=4\.0'"):
        load_hub(root)


def switches() -> list[Any]:
    hub_library = pytest.importorskip("huggingface_hub")
    bars = datasets.utils.are_progress_bars_disabled()
    return [datasets.config.HF_HUB_OFFLINE, hub_library.constants.HF_HUB_OFFLINE, bars]


def test_unknown_name_without_a_network_is_explained_and_nothing_is_left_switched(monkeypatch) -> None:
    before = switches()
    with pytest.raises(InputError, match=r"hf:no/such cannot be loaded \(.*\): run once without --no_download"):
        load_hub("no/such")
    assert switches() == before
    seen: list[Any] = []

    def unreachable(*_: object, **__: object) -> None:
        seen.append(switches()[0])
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        InputError, match=r"\(ConnectionError: first line second line\): check its name and the network"
    ):
        load_hub("no/such", download=True)
    assert seen == [before[0]]
    assert switches() == before


def test_dataset_that_the_library_has_cached_needs_no_network(
    tmp_path: Path, library_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_hub(make_parquet(tmp_path / "name"))
    # As if it had been fetched: the library keeps what it read from a folder in the same way.
    (library_cache / "name").rename(library_cache / "owner___name")
    train, test = load_hub("owner/name")
    assert (len(train), len(test), train.class_names) == (7, 5, tuple(CLASSES))
    assert train.name == "hf:owner/name"
    forbid_decoding(monkeypatch)
    load_hub("owner/name")


def test_only_chosen_keys_are_written_back() -> None:
    assert str(hub.parse("owner/name")) == "hf:owner/name"
    assert str(hub.parse("owner/name?label=a b&test=val")) == "hf:owner/name?label=a+b&test=val"


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_file_says_of_its_columns_is_damaged(tmp_path: Path, split: str) -> None:
    """It is JSON, of which the library takes that of the first file alone."""
    make_parquet(tmp_path / "set")
    load_hub(tmp_path / "set")
    (file,) = (tmp_path / "set").glob(f"{split}-*")
    read = pyarrow.parquet.read_table(file)
    told = read.schema.metadata[b"huggingface"].replace(b'{"info":', b'{"info";')
    pyarrow.parquet.write_table(read.replace_schema_metadata({b"huggingface": told}), file)
    with pytest.raises(InputError, match="JSONDecodeError") as refused:
        load_hub(tmp_path / "set")
    assert str(refused.value).isprintable()
