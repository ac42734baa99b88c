"""Prepares the test of an authors' synthetic set as their corruption script does it.

The authors' files hold only images and labels, so network, protocol and dataset follow their script.
"""

from __future__ import annotations

from pathlib import Path

import torch

from common.config.checks import check_least
from common.config.options import DSA_STRATEGY
from common.datasets import ImageData, check_dataset, is_imagenet, load_dataset
from common.datasets.imagenet_classes import PREFIX, SYNONYMS, WHOLE
from common.disk.paths import expanded
from common.images.pixel_values import as_normalised
from common.images.pixels import Resize, ResizeMode
from common.robustness.options import RobustnessOptions
from common.synset.authors import is_authors, read_authors
from common.system.errors import InputError
from common.training.evaluation_setup import EvaluationSetup, override
from common.training.train import Batches, EvaluationProtocol

AUTHORS_LR = 0.01
# The authors' script uses this protocol for every set.
AUTHORS_PROTOCOL = EvaluationProtocol(epochs=1000, lr=AUTHORS_LR, batch=256, strategy=DSA_STRATEGY)
AUTHORS_NETWORK, AUTHORS_IMAGENET_NETWORK = "ConvNetD3", "ConvNetD5"


def is_authors_set(options: RobustnessOptions) -> bool:
    """Whether an authors' file is tested: --synset names one, or neither --synset nor --baseline is given."""
    return options.baseline is None and (options.synset is None or is_authors(options.synset))


def authors_set(options: RobustnessOptions, folder: Path, device: torch.device) -> EvaluationSetup:
    """Prepare the test of a set in the authors' format, with the network and protocol of the authors' script.

    folder: the script's own folder, where `trained_synset/` lies by default.
    Raises InputError for options that cannot work, and for a set that does not fit the dataset.
    """
    check_least(options, "num_eval", 1)
    check_least(options, "ipc", 1)
    if any(value is not None for value in (options.recipe, options.cifar100_stats, options.zca)):
        raise InputError("--recipe, --cifar100_stats and --zca are for baselines: leave them out with a synthetic set")
    if options.synset is not None and options.ipc is not None:
        raise InputError("--ipc says which file of --synset_path is meant: leave it out with --synset")
    dataset = options.dataset or "CIFAR10"
    check_dataset(dataset, options.subset)
    file = options.synset or _authors_file(options, dataset, folder)
    found = read_authors(file, pixels=options.pixels, soft_labels=options.soft_labels)
    imagenet = is_imagenet(dataset)
    # For ImageNet the authors squash images, and their version of torchvision did not antialias.
    antialias = not imagenet if options.antialias is None else options.antialias
    mode: ResizeMode = options.resize or ("squash" if imagenet else "crop")
    _, test = load_dataset(
        dataset,
        options.data_path,
        download=not options.no_download,
        image_size=options.image_size or (found.im_size[0] if imagenet else None),
        resize=mode,
        antialias=antialias,
        decoding=options.decoding,
        skip_corrupt=options.skip_corrupt,
        workers=options.workers,
    )
    _check_fit(test, found.images, found.num_classes)
    images = as_normalised(found.images, options.pixels, test, file)
    soft = None if found.soft_labels is None else found.soft_labels.probabilities().to(device)
    batches = Batches(images.to(device), found.labels.to(device), soft)
    network = options.model or (AUTHORS_IMAGENET_NETWORK if imagenet else AUTHORS_NETWORK)
    protocol = override(AUTHORS_PROTOCOL, options)
    resize = Resize(test.im_size[0], mode, antialias)
    return EvaluationSetup(lambda number: batches, test.to(device), dataset, network, protocol, resize)


def _check_fit(test: ImageData, images: torch.Tensor, classes: int) -> None:
    if tuple(images.shape[1:]) != tuple(test.images.shape[1:]) or classes != test.num_classes:
        raise InputError(
            f"the test images of {test.name} are {tuple(test.images.shape[1:])} of {test.num_classes} classes, the "
            f"synthetic ones {tuple(images.shape[1:])} of {classes}: give the --dataset they were made from"
        )


def _authors_file(options: RobustnessOptions, dataset: str, folder: Path) -> Path:
    """Find the authors' file by its name, such as FreD/CIFAR10/FreD_ipc1#images_best.pt.

    Files of an ImageNet subset are in FreD/ImageNet/<subset>, where any name of the subset is accepted. Raises
    InputError if there is no such file.
    """
    root = expanded(options.synset_path or folder / "trained_synset") / "FreD"
    places = [root / dataset]
    if is_imagenet(dataset):
        key = dataset.removeprefix(PREFIX)
        # The authors' own names of the subset come first.
        synonyms = [name for name, known in SYNONYMS.items() if known == key]
        places = [root / WHOLE / name for name in (*synonyms, key)]
    files = [place / f"FreD_ipc{options.ipc or 1}#images_best.pt" for place in places]
    for file in files:
        if file.is_file():
            return file
    raise InputError(
        f"there is no {files[0]}: put the authors' images_best.pt and labels_best.pt there under this name (and with "
        "#labels_best.pt), or give --synset FILE or --baseline random|full"
    )
