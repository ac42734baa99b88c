"""The options of evaluate.py: how networks are trained on a set, or on real images, and tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.config.options import (
    Compile,
    CudaGraphs,
    DataOptions,
    Device,
    ImageSize,
    NetworkPrecision,
    NetworksAtOnce,
    NoDownload,
    Seed,
    SkipCorrupt,
    Subset,
    Workers,
)
from common.config.preview_options import DryRun
from common.datasets.imagenet_classes import canonical, resolve
from common.images.pixel_values import PixelValues
from common.images.pixels import Decoding, ResizeMode, StoredAs
from common.matching.transforms import Augmentation
from common.networks.pools import EvalMode, EvalProtocol
from common.synset.soft_labels import SoftLabelKind

REFERENCES = ("random", "full", "unaugmented")


@dataclass
class EvaluateOptions:
    """Train networks on a synthetic set and test them. Options that are not given are read from the set's file."""

    synset: str | None = None
    """the synthetic set: a .safetensors file, hf://owner/name[/file] on the Hugging Face Hub,
    or the authors' res_*.pt or images_*.pt (with its labels_*.pt in the same folder)"""
    baseline: Literal["random", "herding", "kcenter", "full"] | None = None
    """train on real images instead of a synthetic set:
    ipc images per class, drawn at random for each network (random), chosen by herding or as k centres (kcenter),
    or the whole training set (full)"""
    coreset_epochs: int = 20
    """herding and kcenter choose images by the features of a network:
    epochs for training that network on the whole training set"""
    ipc: int | None = None
    """baselines: real images per class, or with --stored_as the budget, that many float32 images (default: 1);
    also selects the recipe that says how to train"""
    stored_as: StoredAs | None = None
    """random, herding and kcenter: store the images chosen as files of this kind in a budget of bits per class, and
    train all networks on the decoded images (random: one draw). PNG: images in the order chosen until the budget is
    full. The others: n images in one quality per class, the best one that fits. JPEG is 4:2:0, AVIF 4:4:4;
    WebP has no grayscale, so one channel is stored as three. coded: as the start of distill.py --storage coded"""
    bits_per_class: int | None = None
    """budget of --stored_as instead of --ipc (default: ipc * numbers in an image * 32);
    the recipe of the nearest ipc says how to train"""
    n: int | None = None
    """images per class of --stored_as jpeg, webp, avif and coded (default: as many as leave each image 0.25 bits per
    number, of a file more than it takes in the lowest quality; at most those that fit or are in the smallest class)"""
    count_headers: bool | None = None
    """--stored_as: whether the budget pays for whole files, or only for what differs between files: the chunks IDAT
    of PNG, scans of JPEG and Huffman tables of an image's own, VP8 data, the box mdat of AVIF (default: True)"""
    model: str | None = None
    """network to evaluate (default: the one named in the file; baselines: the recipe's)"""
    eval_mode: EvalMode | None = None
    """evaluate a pool of networks instead of one:
    M, B, CIFAR, W, D, A, P or N; or C, S or SS, which depend on --model; see distill.py --help"""
    models: str | None = None
    """evaluate these networks, joined by commas, e.g. ConvNetD3,AlexNet,VGG11,ResNet18"""
    eval_protocol: EvalProtocol | None = None
    """how networks are trained, dc or glad (which has its own learning rates), see distill.py --help
    (default: from the file; baselines: the recipe's)"""
    networks_at_once: NetworksAtOnce = 0
    pixels: PixelValues | None = None
    """what the pixel values in an authors' file are: normalised (as their scripts write them), or those of pixels:
    unit (0..1), signed (-1..1) or bytes (0..255), which are normalised by the dataset's mean and std
    (default: normalised, with a warning if the values look like those of pixels)"""
    soft_labels: SoftLabelKind | None = None
    """what the labels [N, C] in an authors' file are, if it holds a number for each class: probabilities,
    or logits, of which the softmax is taken (default: probabilities; a .safetensors file says so itself)"""
    dataset: str | None = None
    """dataset of the test images, e.g. folder:PATH
    (default: the one named in the file; baselines: the default of distill.py)"""
    subset: Subset = None
    image_size: ImageSize = None
    """resize images of imagenet-SUBSET, folder: or hf: to squares with this side in pixels
    (default: from the file; baselines: the recipe's)"""
    resize: ResizeMode | None = None
    """crop or squash, see distill.py --help (default: from the file; baselines: the recipe's)"""
    antialias: bool | None = None
    """antialias when downscaling (default: from the file; baselines: the recipe's)"""
    decoding: Decoding | None = None
    """shown or stored, see distill.py --help (default: from the file, else as distill.py)"""
    skip_corrupt: SkipCorrupt = False
    recipe: str | None = None
    """baselines: train as the recipe of this dataset says; for folder: and hf: also use its mean and std"""
    zca: bool | None = None
    """whiten the real images (ZCA) instead of normalising them:
    for baselines, and for authors' files with whitened images (a .safetensors file says whether its images are)"""
    cifar100_stats: Literal["cifar100", "cifar10"] | None = None
    """baselines: the dataset whose mean and std CIFAR100 is normalised with (default: cifar100)"""
    data_path: str | None = DataOptions.data_path
    """folder where datasets are stored or downloaded; for imagenet-SUBSET, the folder with train/ and val/
    (default: data; for imagenet-SUBSET, $IMAGENET if set)"""
    no_download: NoDownload = False
    workers: Workers = None
    num_eval: int = 5
    """networks of each architecture to train"""
    epoch_eval_train: int | None = None
    """epochs for training each network; --eval_protocol dc runs one more
    (default: from the file; baselines: the recipe's)"""
    batch_train: int | None = None
    """images per training step (default: from the file; baselines: the recipe's)"""
    lr_net: float | None = None
    """learning rate of the networks
    (default: with --eval_protocol dc the learned step size, if the file holds one, else that of the protocol)"""
    dsa_strategy: str | None = None
    """augmentations joined by underscores, or none; with none, MNIST and ConvNetBN get DC's augmentation
    (default: from the file; baselines: the recipe's)"""
    augmentation: Augmentation = "dsa"
    """how the images are augmented that networks are trained on: dsa (as --dsa_strategy, the file or the recipe says),
    none, or one of torchvision's: autoaugment or randaugment, a draw for each image, on pixels of 8 bits (slow: images
    are augmented one by one); cutmix or mixup, a draw for each batch, labels mixed as well"""
    references: str | None = None
    """also train networks on real images by the same protocol, and compare: random (as many images as the budget of the
    set), full (all images; its estimated time is printed first), unaugmented (the set and random images without an
    augmentation), joined by commas. random and full together give DD-Ranking's label-robust score, random and
    unaugmented its augmentation-robust score. Networks on real images are kept in the cache folder and not trained
    again"""
    full_epochs: int | None = None
    """epochs of --references full (default: those of an expert, 50 unless a recipe of TM says otherwise)"""
    seed: Seed = 0
    device: Device = "auto"
    precision: NetworkPrecision = "fp32"
    compile: Compile = False
    cuda_graphs: CudaGraphs = False
    dry_run: DryRun = False
    output: str | None = None
    """also write the accuracies to this JSON file, and one CSV row per network beside it (x.json and x.csv)"""

    def __post_init__(self) -> None:
        if self.dataset is not None:
            self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)

    @property
    def references_asked(self) -> tuple[str, ...]:
        """The names in --references, () without it."""
        return () if self.references is None else tuple(name.strip() for name in self.references.split(","))
