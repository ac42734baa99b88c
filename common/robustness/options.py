"""The options of corruption-exp/evaluate.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from common.config.options import EvaluateOptions
from common.networks.pools import EvalMode
from common.robustness.conditions import TargetName


@dataclass
class RobustnessOptions(EvaluateOptions):
    """Train networks on a synthetic set and test them on drifted images. What is not given comes from the file."""

    synset: str | None = None
    """the synthetic set: a .safetensors file of this project or the authors' images_*.pt or res_*.pt (default, without
    --baseline: the authors' file of --dataset and --ipc below --synset_path)"""
    ipc: int | None = None
    """baselines and --synset_path: images a class (1 unless given)"""
    dataset: Annotated[str | None, tyro.conf.arg(aliases=("--source_dataset",))] = None
    """what the set was made from, if not where the file says; with the authors' files CIFAR10 (unless given) or
    ImageNet with its --subset (baselines: digits, so name one)"""
    eval_mode: Annotated[EvalMode | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """one kind of network is tested, that of --model"""
    models: Annotated[str | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """likewise"""
    networks_at_once: Annotated[int, tyro.conf.Suppress, tyro.conf.Fixed] = 1
    """networks are trained one by one: each is kept, and tested on everything"""
    output: str | None = None
    """write results.csv, results.json and heatmap.png to this folder"""
    synset_path: str | None = None
    """folder with FreD/CIFAR10/FreD_ipc1#images_best.pt, FreD/ImageNet/imagenette/... and so on, the authors' names
    (default: trained_synset beside the script)"""
    target_dataset: TargetName | None = None
    """the drifted images (default: ImageNet-C for subsets of ImageNet, else CIFAR10-C)"""
    target_path: str | None = None
    """folder that holds CIFAR10-C/, CIFAR10.1/ or imagenet-c/ (default: as --data_path)"""
    level: str = "all"
    """severity, 1 (mild) to 5 (severe; the authors' script), or all; CIFAR10.1 has none"""
    corruptions: tuple[str, ...] | None = None
    """which of them (default: the fifteen standard ones)"""
    versions: tuple[Literal["v4", "v6"], ...] | None = None
    """of CIFAR10.1 (default: v6, as the authors)"""
    target_stats: Literal["train", "half"] = "train"
    """how drifted images are normalised: train as those that the networks were trained on; half by mean 0.5 and std
    0.5, a fault of the authors' code for CIFAR10-C and CIFAR10.1, to compare with their figures"""
    relative_to: str | None = None
    """results.json of a baseline, tested on the same images, gives the mean corruption error (mCE), in % of
    its errors"""
