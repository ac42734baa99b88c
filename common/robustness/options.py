"""The options of corruption-exp/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from common.config.evaluate_options import EvaluateOptions
from common.networks.pools import EvalMode
from common.robustness.conditions import TargetName


@dataclass
class RobustnessOptions(EvaluateOptions):
    """Train networks on a synthetic set and test them on corrupted or shifted test images.

    The test images are those of CIFAR-10-C, ImageNet-C or CIFAR-10.1. Options that are not given are taken from the
    file of the synthetic set.
    """

    synset: str | None = None
    """the synthetic set: a .safetensors file of this project, or the authors' images_*.pt or res_*.pt (if neither
    --synset nor --baseline is given: the authors' file for --dataset and --ipc in --synset_path)"""
    ipc: int | None = None
    """images per class of a baseline, or of the authors' file in --synset_path (1 unless given)"""
    dataset: Annotated[str | None, tyro.conf.arg(aliases=("--source_dataset",))] = None
    """dataset that the set was made from (default: as the file says; with the authors' files CIFAR10, or give ImageNet
    with --subset; for baselines digits, which has no corrupted or shifted test images, so name another)"""
    eval_mode: Annotated[EvalMode | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """not available: only the network of --model is tested"""
    models: Annotated[str | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """not available: only the network of --model is tested"""
    networks_at_once: Annotated[int, tyro.conf.Suppress, tyro.conf.Fixed] = 1
    """not available: networks are trained one by one, so that each can be kept and tested under every condition"""
    dry_run: Annotated[bool, tyro.conf.Suppress, tyro.conf.Fixed] = False
    """not available: evaluate.py --dry_run tells what the training takes"""
    references: Annotated[str | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """not available: --relative_to compares with a baseline"""
    full_epochs: Annotated[int | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """not available, as --references"""
    output: str | None = None
    """write results.csv, results.json and heatmap.png to this folder"""
    synset_path: str | None = None
    """folder with the authors' files under the authors' names, such as FreD/CIFAR10/FreD_ipc1#images_best.pt and
    FreD/ImageNet/imagenette/... (default: trained_synset beside the script)"""
    target_dataset: TargetName | None = None
    """the corrupted or shifted test images (default: ImageNet-C for subsets of ImageNet, else CIFAR10-C)"""
    target_path: str | None = None
    """folder that contains CIFAR10-C/, CIFAR10.1/ or imagenet-c/ (default: that of --data_path)"""
    level: str = "all"
    """severity of the corruptions, from 1 (mild) to 5 (severe; used by the authors' script), or all levels; CIFAR10.1
    has no levels"""
    corruptions: tuple[str, ...] | None = None
    """the corruptions to test (default: the fifteen standard ones)"""
    versions: tuple[Literal["v4", "v6"], ...] | None = None
    """the versions of CIFAR10.1 to test (default: v6, as in the authors' script)"""
    target_stats: Literal["train", "half"] = "train"
    """normalisation of the corrupted or shifted test images: train normalises them like the training images; half uses
    mean 0.5 and std 0.5, a fault of the authors' code for CIFAR10-C and CIFAR10.1, to compare with their figures"""
    relative_to: str | None = None
    """results.json of a baseline that was tested on the same images; the mean corruption error (mCE) is then also
    computed, in % of the baseline's errors"""
