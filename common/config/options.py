"""The options of every command, with their defaults and help texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from common.codec.payload import Kind
from common.codec.planes import Block, Colour
from common.config.places import BUFFERS
from common.config.preview_options import PREVIEW, DistillPreviewOptions, PreviewOptions
from common.config.validation import ValidationOptions
from common.datasets import (
    PREFIXES,
    ImageData,
    check_dataset,
    check_decoding,
    default_image_size,
    load_dataset,
    statistics,
)
from common.datasets.imagenet_classes import canonical, resolve
from common.frequency import TransformName
from common.images.image_data import Statistics, with_statistics
from common.images.pixels import Decoding, ResizeMode
from common.matching.augment import STRATEGIES
from common.networks.pools import EvalMode, EvalProtocol
from common.synset.packed import Positions
from common.synset.selection import SelectionRule
from common.system import parallel
from common.system.devices import Precision
from common.system.errors import InputError
from common.system.text import counted

DSA_STRATEGY = "_".join(STRATEGIES)
EVALUATION_EPOCHS = 1000  # the authors'

# These options say where a run computes, reads and writes. Two runs that differ only in them are the same run.
# The default of any other new option must keep the behaviour from before the option existed: see identity.py.
NOT_PART_OF_A_RUN = frozenset({
    "data_path", "no_download", "workers", "save_path", "name", "device", "resume", "checkpoint_every", "export",
    "track", "track_project", "track_group", "buffer_path", "seeds", "memory_budget", "cuda_graphs", *PREVIEW,
})  # fmt: skip

# The authors' ImageNet scripts call it --res. torchrun takes a --n behind the script's name for one of its own.
ALIASES = {"res": "image_size", "images_per_class": "n"}


def _aliases(option: str) -> tuple[str, ...]:
    return tuple(f"--{alias}" for alias, name in ALIASES.items() if name == option)


ImageSize = Annotated[int | None, tyro.conf.arg(aliases=_aliases("image_size"))]
Count = Annotated[int | Literal["auto"] | None, tyro.conf.arg(aliases=_aliases("n"))]

# Options of several commands that mean the same in all of them.
Subset = Annotated[
    str | None,
    tyro.conf.arg(
        help="subset for --dataset ImageNet: a, b, c, d, e, imagenette, imagewoof, fruits, yellow, cats, birds, geo, "
        "food, mammals or marine"
    ),
]
NoDownload = Annotated[bool, tyro.conf.arg(help="never download a missing dataset")]
SkipCorrupt = Annotated[
    bool, tyro.conf.arg(help="leave out image files that cannot be read and report their number, instead of stopping")
]
Workers = Annotated[
    int | None, tyro.conf.arg(help="threads that decode image files (default: by image size and CPU cores)")
]
NetworksAtOnce = Annotated[
    int,
    tyro.conf.arg(
        help="how many evaluation networks of the same architecture to train in parallel (0: all on a GPU, one at a "
        "time on a CPU)"
    ),
]
Seed = Annotated[int, tyro.conf.arg(help="random seed; determines every random draw")]
Device = Annotated[str, tyro.conf.arg(help="auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu")]
NetworkPrecision = Annotated[Precision, tyro.conf.arg(help="precision of the networks: fp32, tf32 or bf16")]
Compile = Annotated[bool, tyro.conf.arg(help="compile the network: takes about 30 s once, makes epochs faster")]
CudaGraphs = Annotated[
    bool,
    tyro.conf.arg(
        help="CUDA: record the training steps and tests of networks as graphs, each then launched as one operation; "
        "takes memory, changes no result, and has not been timed yet"
    ),
]


@dataclass
class DataOptions:
    """The dataset and how its images are read, resized and normalised."""

    dataset: str = "digits"
    """digits (built in), MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, Tiny, 3D-MNIST,
    imagenet-SUBSET (or ImageNet with --subset),
    folder:PATH (holding train/CLASS/ and test/CLASS/ or val/CLASS/, or CLASS/; distilled without other flags, with
    hyper-parameters by rule),
    hf:owner/name (a Hugging Face Hub dataset), or hf:PATH (a folder of Parquet files)"""
    subset: Subset = None
    data_path: str | None = None
    """folder where datasets are stored or downloaded; for imagenet-SUBSET, the folder with train/ and val/.
    None: data; for imagenet-SUBSET, $IMAGENET if set"""
    no_download: NoDownload = False
    image_size: ImageSize = None
    """resize the images of imagenet-SUBSET, folder:PATH or hf:... to squares with this side in pixels.
    None: 128 for imagenet-SUBSET; folder:PATH is distilled by rule if its images have several sizes; the others are
    not resized"""
    resize: ResizeMode = "crop"
    """crop: scale the shorter side to image_size and cut out the centre square;
    squash: scale both sides to image_size"""
    antialias: bool = True
    """antialias when downscaling; False behaves like torchvision 0.12, which the authors used"""
    decoding: Decoding | None = None
    """shown: read image files as viewers show them, turned by their EXIF orientation, transparent ones on white;
    stored: ignore orientation and transparency (default: shown; for imagenet-SUBSET and Tiny stored, as published)"""
    skip_corrupt: SkipCorrupt = False
    recipe: str | None = None
    """name of a dataset whose recipe (default hyper-parameters) replaces that of --dataset;
    folder:PATH and hf:... also take its mean and std"""
    zca: bool = False
    """whiten the images instead of normalising by mean and std (ZCA, fitted to the training images; 2-D only)"""
    cifar100_stats: Literal["cifar100", "cifar10"] = "cifar100"
    """mean and std to normalise CIFAR100 with: its own, or those of CIFAR10 as in the authors' trajectory matching"""
    workers: Workers = None

    def __post_init__(self) -> None:
        # Each dataset gets one canonical name. `check` and `load` refuse names that do not exist.
        self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)
        if self.image_size is None:
            self.image_size = default_image_size(self.dataset)

    def load(self) -> tuple[ImageData, ImageData]:
        """Load (train, test) on the CPU; folder: and hf: datasets take mean and std from the dataset named by `recipe`.

        Raises InputError for an option that does not fit the dataset, and for data that cannot be loaded.
        """
        self.check_images()
        borrowed = self._borrowed_statistics()
        with parallel.main_first():
            train, test = load_dataset(
                self.dataset,
                self.data_path,
                download=not self.no_download,
                image_size=self.image_size,
                resize=self.resize,
                antialias=self.antialias,
                decoding=self.decoding,
                skip_corrupt=self.skip_corrupt,
                zca=self.zca,
                workers=self.workers,
                progress=parallel.is_main(),
            )
        if borrowed is None:
            return train, test
        mean, std = self._of_as_many_channels(borrowed, train.channels)
        return with_statistics(train, mean, std), with_statistics(test, mean, std)

    def check_images(self) -> None:
        """Raise InputError for an option that does not fit the dataset. No file is looked at."""
        check_dataset(self.dataset, self.subset)
        check_decoding(self.dataset, self.image_size, self.resize, self.antialias, self.decoding, self.skip_corrupt)

    def _of_as_many_channels(self, borrowed: Statistics, channels: int) -> Statistics:
        """The borrowed mean and std, of gray images the mean over the lender's channels; a line says so."""
        lent = len(borrowed[0])
        if lent == channels or 1 not in (lent, channels):  # other numbers cannot be brought together, and are refused
            return borrowed
        mean, std = (sum(each) / lent for each in borrowed)
        how = "their mean is taken" if channels == 1 else "every channel takes the same"
        if parallel.is_main():
            tqdm.write(
                f"--recipe {self.recipe} lends mean and std of {counted(lent, 'channel')} to images of {channels}: "
                f"{how}, {mean:.4f} and {std:.4f}"
            )
        return (mean,) * channels, (std,) * channels

    def _borrowed_statistics(self) -> Statistics | None:
        """Return the mean and std borrowed from another dataset, or None to keep the dataset's own."""
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
            return None
        borrowed = statistics(lender)
        if borrowed is None:
            raise InputError(f"--recipe {lender} has no mean and std to borrow: give a dataset such as CIFAR10")
        return borrowed


@dataclass
class EvaluationOptions:
    """How a synthetic set is evaluated: by training networks from scratch on it and testing them."""

    num_eval: int = 5
    """networks of each architecture to train per evaluation"""
    epoch_eval_train: int | None = EVALUATION_EPOCHS
    """epochs for training each evaluation network
    (--eval_protocol dc runs one more, as the authors' code does, and drops the learning rate to a tenth halfway).
    None, the default of DC/distill.py: 1000 with augmentation, 300 without"""
    batch_train: int = 256
    """batch size for training the evaluation networks"""
    lr_net: float = 0.01
    """learning rate of the evaluation networks with --eval_protocol dc (SGD, momentum 0.9, weight decay 5e-4);
    DC also trains the matched network with it"""
    eval_mode: EvalMode = "S"
    """networks to evaluate.
    S: the network of --model without its batch norm (ConvNetBN becomes ConvNet); SS: exactly that of --model;
    C: that of --model and ConvNet.
    Groups: M (several architectures), B (several with batch norm), CIFAR (several for small images);
    W, D, A, P, N (ConvNets that differ in width, depth, activation, pooling or norm)"""
    eval_protocol: EvalProtocol = "dc"
    """dc: constant learning rate, cut to a tenth halfway;
    glad (the default of ImageNet-abcde/): warm-up and cosine schedule, learning rate by architecture (1e-3; VGG11
    1e-4), evaluates a moving average of the weights over epochs"""
    networks_at_once: NetworksAtOnce = 0


@dataclass
class DistillOptions(DistillPreviewOptions, EvaluationOptions, ValidationOptions, DataOptions):
    """The options that every objective's distillation takes."""

    model: str = "ConvNetD3"
    """network used for matching and for evaluation: ConvNet with depth D1..D8, width W32.., norm NN (none), BN, LN, IN
    or GN, joined without separators (ConvNetD3W64IN), or another architecture"""
    ipc: int = 1
    """storage budget per class, as a number of real images"""
    msz_per_channel: int = 0
    """k, coefficients kept per channel of a synthetic image; gives n = ipc * pixels / k images per class
    (0: from the recipe, or all pixels with --transform identity)"""
    lr_freq: float = 0.0
    """learning rate of the coefficients, in the units of the transform (dct: unnormalised DCT).
    0: the recipe's; a recipe has one for dct, which is converted to the units of dft or dwt, and one for identity"""
    mom_freq: float = 0.5
    """momentum of the coefficients"""
    transform: TransformName = "dct"
    """dct, dft (Fourier), dwt (Haar wavelets) or identity (plain pixels; lr_freq is then in normalised pixel values);
    each keeps k real numbers per channel and image"""
    selection: SelectionRule = "variance"
    """how the k positions of a class are chosen:
    variance (the paper's rule), energy (least squared error), low (lowest frequencies) or random"""
    selection_images: Literal["init", "class"] = "init"
    """images used by --selection: the n initial ones (init, as the authors do) or all images of the class (class)"""
    storage: Literal["fp32"] | Kind = "fp32"
    """how a synthetic set is stored; it is distilled through this rounding.
    fp32: k float32 numbers per channel, the paper's; bf16, int8: k kept numbers in 16 or 8 bits;
    coded: all coefficients, rounded to whole steps and entropy-coded, with the step at which they fit the budget"""
    bits_per_class: int | None = None
    """with another storage than fp32: budget per class in bits, everything that a decoder needs included
    (default: those of ipc float32 images); given, the recipe is that of the nearest ipc, unless --ipc names one"""
    n: Count = None
    """with another storage than fp32: synthetic images per class (default: as many as fit; coded: as many as have a
    quarter of a bit per pixel value, at most all images of the smallest class); auto, coded only: of several, the one
    whose initial set trains the best network, tested on training images that are in none of them.
    Under torchrun, which takes --n for its own, say --images_per_class"""
    colour: Colour | None = None
    """opponent: transform luminance and two colour differences in place of red, green and blue (default: opponent for
    images of three channels that are coded or have joint positions, otherwise rgb)"""
    block: Block = 0
    """side of the blocks that are transformed (coded, or with joint positions); 0: the whole image"""
    positions: Positions | None = None
    """bf16, int8: shared: the k positions of a class are the same in all channels (default); joint: positions are
    chosen over all channels together, those of the largest energy, k for each channel on average"""
    rate_weight: float = 0.0
    """coded: size of the gradient of the code length beside that of the loss. This weight rises while the codes outgrow
    the budget and falls while they shrink. The budget holds without it, too: the step grows instead"""
    optimizer: Literal["sgd", "adam"] | None = None
    """of the coefficients: sgd with momentum; adam, with lr_freq in units of the spread of each position over its class
    (0.03 if it is not given) (default: adam if coded, otherwise sgd)"""
    Iteration: int = 20000
    """updates of the synthetic set"""
    dsa: bool = True
    """use differentiable Siamese augmentation in matching and evaluation;
    if False, evaluations on MNIST, and of the network ConvNetBN, use DC's augmentation, as in the authors' code"""
    dsa_strategy: str = DSA_STRATEGY
    """augmentations of --dsa, joined by underscores"""
    eval_it: int = 2000
    """updates between two evaluations (0: only before the first and after the last update)"""
    wait_eval: bool = False
    """before the last update, evaluate only the network of --model (or the first of --eval_mode, if that lacks it);
    evaluate the others only after the last update"""
    seed: Seed = 0
    seeds: str | None = None
    """distil once with each of these seeds, e.g. 0-4 or 0,2,5-7, and report mean and standard deviation over the sets.
    Each run is that of --seed N, in the run folder <name>-seed<N>; the page of all is <name>-seeds/report.html"""
    device: Device = "auto"
    precision: Precision = "fp32"
    """precision of the networks: fp32, tf32 or bf16; the coefficients and their transform are always float32"""
    compile: bool = False
    """compile the networks: adds about 30 s before the first update; on a CPU later updates of DM are 1.6 times as
    fast, evaluations 1.3 times, updates of DC and TM 0.9 to 1.3 times"""
    cuda_graphs: CudaGraphs = False
    chunk: int | None = None
    """images per forward pass (default: by device); affects memory and speed, never the result"""
    save_path: str = "runs"
    """parent of the run folders, which are <objective>/<dataset>/ipc<ipc>/<name>
    (with --bits_per_class, bits<bits> in place of ipc<ipc>)"""
    name: str | None = None
    """name of the run folder (default: derived from the options, so the same command finds its run again)"""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue the run that the run folder holds; never: delete that run and start from scratch"""
    checkpoint_every: int = 0
    """updates between checkpoints (0: chosen so that checkpointing takes about 1 % of the run time)"""
    export: bool = False
    """also save the best synthetic set as images_best.pt and labels_best.pt, the authors' format"""
    track: TrackerName = "none"
    """also log curves and images to wandb or tensorboard; wandb runs offline if you are not logged in"""
    track_project: str | None = None
    """wandb project (default: $WANDB_PROJECT, else fred)"""
    track_group: str | None = None
    """wandb group (default: <objective>/<dataset>/ipc<ipc>)"""

    @property
    def strategy(self) -> str:
        """The DSA augmentations to use; '' without --dsa."""
        return self.dsa_strategy if self.dsa else ""

    @property
    def optimizer_used(self) -> Literal["sgd", "adam"]:
        """The optimiser of the coefficients, whether it was asked for or not."""
        return self.optimizer or ("adam" if self.storage == "coded" else "sgd")

    @property
    def joint(self) -> bool:
        """Whether all channels of an image together have the positions that are kept."""
        return self.storage == "coded" or self.positions == "joint"


@dataclass
class BufferOptions(PreviewOptions, ValidationOptions, DataOptions):
    """Train expert networks on a dataset and store their weights after every epoch, for trajectory matching."""

    model: str = "ConvNetD3"
    """network of the experts; trajectory matching uses the same network. by_size, the default for folder:PATH and
    hf:... without --recipe: a ConvNet as deep as the images are large (docs/recipes.md)"""
    num_experts: int = 100
    """experts in the buffer; experts that it already holds are not trained again"""
    train_epochs: int = 50
    """epochs for training each expert"""
    keep_epochs: int | None = None
    """stop each expert after this many of the --train_epochs (default: all);
    matching needs max_start_epoch - 1 + expert_epochs"""
    batch_train: int = 256
    """images per training step"""
    lr_teacher: float = 0.01
    """learning rate of the experts (SGD)"""
    mom: float = 0.0
    """momentum"""
    l2: float = 0.0
    """weight decay"""
    decay: bool = False
    """drop the learning rate to a tenth halfway, after epoch train_epochs // 2 + 1 counted from 0"""
    dsa: bool = True
    """augment the images"""
    dsa_strategy: str = DSA_STRATEGY
    """augmentations of --dsa, joined by underscores; each step draws one of them, with its own parameters per image"""
    test_every: int = 0
    """epochs between two tests of an expert, on the training images held back if there are any
    (0: only at the end; 1 for folder:PATH and hf:... without --recipe)"""
    wait: bool = False
    """if other processes are training the last experts, wait until all experts are finished"""
    buffer_path: str = BUFFERS
    """parent of the expert folders, which are <dataset>[_zca]/<model>"""
    seed: Seed = 0
    device: Device = "auto"
    precision: NetworkPrecision = "fp32"
    compile: Compile = False
    cuda_graphs: CudaGraphs = False

    @property
    def strategy(self) -> str:
        """The DSA augmentations to use; "none" without --dsa."""
        return self.dsa_strategy if self.dsa else "none"


@dataclass
class ClassMatchingOptions(DistillOptions):
    """The options of DM and DC, which compare real and synthetic images class by class."""

    batch_real: int = 256
    """real images per class and update"""
    batch_syn: int = 0
    """synthetic images per class and update, drawn again for each update (0: all)"""


Sources = dict[str, str]
"""Where the value of each option comes from: "flag", "default" or the source that a recipe states."""


TrackerName = Literal["none", "wandb", "tensorboard"]
