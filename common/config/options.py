"""The options behind every command line, each with its default and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from common.datasets import (
    PREFIXES,
    ImageData,
    check_dataset,
    default_image_size,
    load_dataset,
    statistics,
)
from common.datasets.imagenet_classes import canonical, resolve
from common.frequency import TransformName
from common.images.image_data import Statistics
from common.images.pixel_values import PixelValues
from common.images.pixels import ResizeMode
from common.matching.augment import STRATEGIES
from common.networks.pools import EvalMode, EvalProtocol
from common.synset.selection import SelectionRule
from common.system import parallel
from common.system.devices import Precision
from common.system.errors import InputError

DSA_STRATEGY = "_".join(STRATEGIES)

# Where a run computes, reads and writes: two runs that differ in these alone are the same run.
# Of every other option the default has to mean what the code did before there was the option: see identity.py.
NOT_PART_OF_A_RUN = frozenset({
    "data_path", "no_download", "workers", "save_path", "name", "device", "resume", "checkpoint_every", "export",
    "track", "track_project", "track_group", "buffer_path",
})  # fmt: skip

# The authors' ImageNet scripts call it --res.
_ALIASES = {"res": "image_size"}
ImageSize = Annotated[int | None, tyro.conf.arg(aliases=tuple(f"--{alias}" for alias in _ALIASES))]

# Options of several commands that mean the same in all of them.
Subset = Annotated[
    str | None,
    tyro.conf.arg(
        help="with --dataset ImageNet: a, b, c, d, e, imagenette, imagewoof, fruits, yellow, cats, birds, geo, food, "
        "mammals or marine"
    ),
]
NoDownload = Annotated[bool, tyro.conf.arg(help="never download a missing dataset")]
SkipCorrupt = Annotated[
    bool, tyro.conf.arg(help="leave out image files that cannot be read, and say how many, instead of stopping")
]
Workers = Annotated[
    int | None, tyro.conf.arg(help="threads that decode image files (default: by image size and cores)")
]
NetworksAtOnce = Annotated[
    int,
    tyro.conf.arg(
        help="networks of a kind that are trained at the same time (0: all on a GPU, one after another on a CPU)"
    ),
]
Seed = Annotated[int, tyro.conf.arg(help="every random draw is a function of it")]
Device = Annotated[str, tyro.conf.arg(help="auto (a CUDA GPU if there is one), cpu, cuda, cuda:N")]
NetworkPrecision = Annotated[Precision, tyro.conf.arg(help="networks in fp32, tf32 or bf16")]
Compile = Annotated[bool, tyro.conf.arg(help="compile the network: half a minute once, then faster epochs")]


@dataclass
class DataOptions:
    """Which images."""

    dataset: str = "digits"
    """digits (built in), MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, Tiny, 3D-MNIST, imagenet-SUBSET, folder:PATH
    with train/CLASS/ and test/CLASS/ (or val/), hf:owner/name of the Hugging Face hub, or hf:PATH with parquet files"""
    subset: Subset = None
    data_path: str | None = None
    """folder that holds the datasets, or into which they are downloaded; of imagenet-SUBSET the one with train/ and
    val/ (default: data; for imagenet-SUBSET what the variable IMAGENET names, if set)"""
    no_download: NoDownload = False
    image_size: ImageSize = None
    """side in pixels of the squares that the images of imagenet-SUBSET (default: 128), folder: or hf: (default: left
    as they are) are made"""
    resize: ResizeMode = "crop"
    """crop: the shorter side is scaled to image_size pixels and the centre square cut out; squash: both sides are"""
    antialias: bool = True
    """antialias what is scaled down; without, as the authors' torchvision 0.12 did"""
    skip_corrupt: SkipCorrupt = False
    recipe: str | None = None
    """take hyper-parameters (for folder: and hf: also mean and std) from this dataset's recipe"""
    zca: bool = False
    """whiten the images (ZCA, fitted to the training images; 2-D only) instead of normalising by mean and std"""
    cifar100_stats: Literal["cifar100", "cifar10"] = "cifar100"
    """mean and std that CIFAR100 is normalised with; cifar10: those of the authors' trajectory-matching folder"""
    workers: Workers = None

    def __post_init__(self) -> None:
        # Names in one form only. What makes no sense is left for `check` and `load` to refuse.
        self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)
        if self.image_size is None:
            self.image_size = default_image_size(self.dataset)

    def load(self) -> tuple[ImageData, ImageData]:
        """(train, test) on the CPU; folder: and hf: take mean and std from `recipe`. Raises InputError."""
        check_dataset(self.dataset, self.subset)
        mean, std = self._borrowed_statistics()
        with parallel.main_first():
            return load_dataset(
                self.dataset,
                self.data_path,
                download=not self.no_download,
                image_size=self.image_size,
                resize=self.resize,
                antialias=self.antialias,
                skip_corrupt=self.skip_corrupt,
                mean=mean,
                std=std,
                zca=self.zca,
                workers=self.workers,
                progress=parallel.is_main(),
            )

    def _borrowed_statistics(self) -> Statistics | tuple[None, None]:
        """Mean and std of another dataset than this one; (None, None) to keep its own."""
        lender = None
        if self.cifar100_stats == "cifar10":
            if self.dataset != "CIFAR100" or self.zca:
                raise InputError(
                    "--cifar100_stats cifar10 sets CIFAR100's mean and std: "
                    "leave it out with another dataset or with --zca"
                )
            lender = "CIFAR10"
        elif self.dataset.startswith(tuple(PREFIXES)) and not self.zca:
            lender = self.recipe
        if lender is None:
            return None, None
        borrowed = statistics(lender)
        if borrowed is None:
            raise InputError(f"--recipe {lender} has no mean and std to borrow: give a dataset such as CIFAR10")
        return borrowed


@dataclass
class EvaluationOptions:
    """How a synthetic set is tested: networks trained from scratch on it."""

    num_eval: int = 5
    """networks trained per evaluation"""
    epoch_eval_train: int | None = 1000
    """epochs of training; one more is run, as in the authors' code, and the step size falls to a tenth halfway
    (None, the default of DC: 1000 where images are augmented, else 300)"""
    batch_train: int = 256
    """images per training step"""
    lr_net: float = 0.01
    """step size of the evaluation networks with --eval_protocol dc (SGD, momentum 0.9, weight decay 5e-4)"""
    eval_mode: EvalMode = "S"
    """networks that are tested: S the distillation network (without its BN), SS as it is, C it and ConvNet, or a pool:
    M and B architectures (B with batch norm), CIFAR architectures for small images, ConvNet's W widths, D depths,
    A activations, P poolings, N norms"""
    eval_protocol: EvalProtocol = "dc"
    """dc: constant step size, a tenth of it in the second half; glad (ImageNet-abcde): warm-up, cosine, a step size by
    architecture (1e-3, VGG11 1e-4), and the weights' moving average over epochs is tested"""
    networks_at_once: NetworksAtOnce = 0


@dataclass
class DistillOptions(EvaluationOptions, DataOptions):
    """What every objective's distillation takes."""

    model: str = "ConvNetD3"
    """network that is matched and evaluated; ConvNet with depth D1..D8, width W32.., norm NN|BN|LN|IN|GN, ..."""
    ipc: int = 1
    """budget: what is stored per class, in images of the dataset"""
    msz_per_channel: int = 0
    """k, coefficients kept per channel of a synthetic image; n = ipc * pixels / k images a class
    (0: from the recipe; with --transform identity: every pixel)"""
    lr_freq: float = 0.0
    """step size on the coefficients, in units of the transform, the unnormalised DCT's for dct
    (0: from the recipe, converted for dft and dwt)"""
    mom_freq: float = 0.5
    """momentum on the coefficients"""
    transform: TransformName = "dct"
    """dct, dft (Fourier), dwt (Haar wavelets), or identity for plain pixels, whose lr_freq is in normalised pixel
    values; k real numbers per channel and image in each"""
    selection: SelectionRule = "variance"
    """rule that chooses the k positions of a class; variance is the paper's"""
    selection_images: Literal["init", "class"] = "init"
    """images the rule looks at: the n initial ones (as the authors do) or all of the class"""
    Iteration: int = 20000
    """updates of the synthetic set"""
    dsa: bool = True
    """differentiable Siamese augmentation while matching and evaluating; without it MNIST and ConvNetBN are evaluated
    with the augmentation of DC, as in the authors' code"""
    dsa_strategy: str = DSA_STRATEGY
    """augmentations, joined by underscores"""
    eval_it: int = 2000
    """updates between two evaluations (0: only before the first and after the last update)"""
    wait_eval: bool = False
    """test the distillation network alone until the last update, and only then the other networks of --eval_mode"""
    seed: Seed = 0
    device: Device = "auto"
    precision: Precision = "fp32"
    """networks in fp32, tf32 or bf16; the coefficients and their transform are always float32"""
    compile: bool = False
    """compile the networks: about half a minute before the first update, then faster ones"""
    chunk: int | None = None
    """images per pass through the network (default: by device); memory and speed, not the result"""
    save_path: str = "runs"
    """run folders lie below it: <objective>/<dataset>/ipc<ipc>/<name>"""
    name: str | None = None
    """name of the run folder (default: made from the options, so the same command finds its run again)"""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue what the run folder holds; never: discard it and start anew"""
    checkpoint_every: int = 0
    """updates between two checkpoints (0: as often as costs a hundredth of the time)"""
    export: bool = False
    """write the best set also as images_best.pt and labels_best.pt, the authors' format"""
    track: TrackerName = "none"
    """show curves and pictures also in wandb or tensorboard; wandb runs offline where nobody is logged in"""
    track_project: str | None = None
    """wandb's project (default: WANDB_PROJECT, else fred)"""
    track_group: str | None = None
    """wandb's group (default: <objective>/<dataset>/ipc<ipc>)"""

    @property
    def strategy(self) -> str:
        """The augmentation in force: '' for none."""
        return self.dsa_strategy if self.dsa else ""


@dataclass
class BufferOptions(DataOptions):
    """Train expert networks on a dataset and keep their weights after every epoch, for trajectory matching."""

    model: str = "ConvNetD3"
    """network that is trained, and later matched"""
    num_experts: int = 100
    """experts in the buffer; those that are there already are not trained again"""
    train_epochs: int = 50
    """epochs of an expert's training"""
    keep_epochs: int | None = None
    """stop after this many of them: matching needs max_start_epoch - 1 + expert_epochs (default: all)"""
    batch_train: int = 256
    """images per training step"""
    lr_teacher: float = 0.01
    """step size (SGD)"""
    mom: float = 0.0
    """momentum"""
    l2: float = 0.0
    """weight decay"""
    decay: bool = False
    """lower the step size to a tenth halfway, after epoch train_epochs // 2 + 1 counted from 0"""
    dsa: bool = True
    """augment the images"""
    dsa_strategy: str = DSA_STRATEGY
    """augmentations, joined by underscores; one is drawn per step, its parameters per image"""
    test_every: int = 0
    """epochs between two tests of an expert (0: only at the end)"""
    wait: bool = False
    """where other processes train the last of the experts, wait until all are there"""
    buffer_path: str = "buffers"
    """experts lie below it: <dataset>[_zca]/<model>"""
    seed: Seed = 0
    device: Device = "auto"
    precision: NetworkPrecision = "fp32"
    compile: Compile = False

    @property
    def strategy(self) -> str:
        """The augmentation in force, "none" where there is none."""
        return self.dsa_strategy if self.dsa else "none"


@dataclass
class ClassMatchingOptions(DistillOptions):
    """What objectives take that compare real and synthetic images class by class, DM and DC."""

    batch_real: int = 256
    """real images per class and update"""
    batch_syn: int = 0
    """synthetic images per class and update, drawn anew each time (0: all)"""


@dataclass
class EvaluateOptions:
    """Train networks on a synthetic set and test them. What is not given comes from the file."""

    synset: str | None = None
    """the synthetic set: a .safetensors file, hf://owner/name[/file] of the Hugging Face hub, or the authors' res_*.pt
    or images_*.pt (beside its labels_*.pt)"""
    baseline: Literal["random", "herding", "kcenter", "full"] | None = None
    """instead of a file: ipc real images a class, at random (each network sees another draw), chosen by herding or as
    k centres, or the whole training set"""
    coreset_epochs: int = 20
    """herding and kcenter: epochs on the whole training set of the network whose features they choose by"""
    ipc: int | None = None
    """baselines: real images a class of the random one (1 unless given); also which recipe says how to train"""
    model: str | None = None
    """another network than the one it was made with (baselines: the recipe's)"""
    eval_mode: EvalMode | None = None
    """test a pool of networks instead of one: M B CIFAR W D A P N, or C, S, SS around the network; see
    distill.py --help"""
    models: str | None = None
    """test these networks, joined by commas, e.g. ConvNetD3,AlexNet,VGG11,ResNet18"""
    eval_protocol: EvalProtocol | None = None
    """how networks are trained, dc or glad, if not as the file or the recipe says; glad has its own step sizes"""
    networks_at_once: NetworksAtOnce = 0
    pixels: PixelValues | None = None
    """what the values of the authors' files are: normalised by the dataset's mean and std, as their scripts write them,
    unit for 0..1 or bytes for 0..255, which are then normalised (default: normalised, and a warning where their range
    contradicts it)"""
    dataset: str | None = None
    """where the test images are, e.g. folder:PATH, if not where they were (baselines: digits)"""
    subset: Subset = None
    image_size: ImageSize = None
    """side in pixels of the squares that images of imagenet-SUBSET, folder: or hf: are made, if not as the file says"""
    resize: ResizeMode | None = None
    """crop or squash, see distill.py --help; if not as the file (baselines: the recipe) says"""
    antialias: bool | None = None
    """antialias what is scaled down, if not as the file (baselines: the recipe) says"""
    skip_corrupt: SkipCorrupt = False
    recipe: str | None = None
    """baselines: train as this dataset's recipe says; on folder: and hf: also take its mean and std"""
    zca: bool | None = None
    """baselines: whiten the images (ZCA) instead of normalising them; a synthetic set says itself whether"""
    cifar100_stats: Literal["cifar100", "cifar10"] | None = None
    """baselines: mean and std that CIFAR100 is normalised with (cifar100 unless given)"""
    data_path: str | None = DataOptions.data_path
    """folder that holds the datasets, or into which they are downloaded (default: data; for imagenet-SUBSET what the
    variable IMAGENET names, if set)"""
    no_download: NoDownload = False
    workers: Workers = None
    num_eval: int = 5
    """networks trained"""
    epoch_eval_train: int | None = None
    """epochs of training (one more is run)"""
    batch_train: int | None = None
    """images per training step"""
    lr_net: float | None = None
    """step size of the networks; a learned one in the file goes before the protocol's"""
    dsa_strategy: str | None = None
    """augmentations joined by underscores, or none (MNIST and ConvNetBN then get the augmentation of DC)"""
    seed: Seed = 0
    device: Device = "auto"
    precision: NetworkPrecision = "fp32"
    compile: Compile = False
    output: str | None = None
    """write the accuracies to this JSON file, and a table of all networks beside it: x.json and x.csv"""

    def __post_init__(self) -> None:
        if self.dataset is not None:
            self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)


Sources = dict[str, str]


TrackerName = Literal["none", "wandb", "tensorboard"]
