"""Small trees of ImageNet in every layout."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from common.datasets.imagenet_classes import SUBSETS
from common.datasets.imagenet_devkit import DEVKIT, META, SOLUTION, TRUTH

WOOF = SUBSETS["imagewoof"]  # not published in the order of its WordNet ids
OTHER = "n01440764"  # a class that is not among them
TRAIN, VAL = 2, 2  # images per class


def save_jpeg(file: Path, label: int, seed: int, size: tuple[int, int] = (20, 14), mode: str = "RGB") -> None:
    """A photograph of sorts, whose brightness tells the class, of `size` = (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 40, (*size[::-1], 3)) + 20 * label
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(file, quality=95)


def make_imagenet(root: Path, wnids: tuple[str, ...] = tuple(WOOF), flat: bool = False) -> Path:
    """Class folders with images of either orientation; `flat` validation images get a devkit, whose ids are not sorted.

    Another class than those of the subset is there too, with a file that nobody must open.
    """
    (root / "train" / OTHER).mkdir(parents=True)
    (root / "train" / OTHER / "broken.JPEG").write_bytes(b"no image")
    for label, wnid in enumerate(wnids):
        for i in range(TRAIN):
            size = (20, 14) if i % 2 else (12, 17)
            save_jpeg(root / "train" / wnid / f"{wnid}_{i}.JPEG", label, 100 + 10 * label + i, size)
    everything = [(wnid, label) for _ in range(VAL) for label, wnid in enumerate((*wnids, OTHER))]
    for number, (wnid, label) in enumerate(everything, 1):
        folder = root / "val" if flat else root / "val" / wnid
        save_jpeg(folder / f"ILSVRC2012_val_{number:08d}.JPEG", label, number)
    if flat:
        ids = {wnid: 3 * place + 1 for place, wnid in enumerate((*reversed(wnids), OTHER))}
        write_devkit(root / DEVKIT, ids, [ids[wnid] for wnid, _ in everything])
    return root


def write_devkit(folder: Path, ids: dict[str, int], truth: list[int]) -> None:
    """meta.mat as MATLAB would write it, with an ancestor of the classes, and the ground truth."""
    fields = [(key, object) for key in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    rows = [(number, wnid, f"words of {wnid}", 0) for wnid, number in ids.items()]
    rows.append((1001, "n00001740", "entity", 2))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    savemat(folder / META, {"synsets": np.array([[row] for row in rows], dtype=fields)})
    (folder / TRUTH).write_text("".join(f"{each}\n" for each in truth))


def write_table(root: Path) -> None:
    """Kaggle's table in place of the devkit of `make_imagenet`, in an order of its own."""
    ids = {3 * place + 1: wnid for place, wnid in enumerate((*reversed(WOOF), OTHER))}
    truth = (root / DEVKIT / TRUTH).read_text().split()
    rows = [f"ILSVRC2012_val_{number:08d},{ids[int(each)]} 85 1 499 272 " for number, each in enumerate(truth, 1)]
    (root / SOLUTION).write_text("\n".join(["ImageId,PredictionString", *reversed(rows), ""]))
    shutil.rmtree(root / DEVKIT)


def pack_devkit(root: Path) -> Path:
    archive = root / f"{DEVKIT}.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(root / DEVKIT, DEVKIT)
    shutil.rmtree(root / DEVKIT)
    return archive
