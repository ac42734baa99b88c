"""Convert the authors' decoded images back into a FreD set: positions, coefficients and metadata.

The authors' files hold only images. Each image is the inverse DCT of k coefficients per channel, at positions that all
images of a class share. The forward DCT is therefore zero at all other positions, up to rounding (how much, see
`common.synset.recover`). Metadata that neither the images nor the file contain are null, which means unknown.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from common import recipes
from common.config.checks import check_least, check_positive
from common.config.command_line import find_recipe, with_recipe
from common.config.options import DataOptions, DistillOptions, Subset
from common.datasets import check_dataset, is_resizable, statistics
from common.datasets.imagenet_classes import PREFIX, SUBSETS, resolve
from common.images.image_data import Statistics
from common.images.pixel_values import PIXELS, PixelValues, normalised_by
from common.recipes import OBJECTIVES
from common.synset import open as opening
from common.synset.authors import AuthorsSet
from common.synset.recover import recover
from common.synset.soft_labels import SoftLabelKind
from common.synset.synset import SynSet
from common.system.errors import InputError
from common.system.text import counted
from common.training.train import EvaluationProtocol


@dataclass
class Provenance:
    """Where a synthetic set comes from, which the authors' files do not contain. Everything may stay unknown.

    If an evaluation needs something that is unknown, it asks for the flag.
    """

    dataset: str | None = None
    """dataset that the set was distilled from; its recipe, mean and std and class names are added to the metadata"""
    subset: Subset = None
    objective: str | None = None
    """objective that made the set: TM, DM, DC, ImageNet-abcde/TM and so on. Its recipe says how networks are trained
    (default: the first of these with a published accuracy for the dataset and ipc)"""
    model: str | None = None
    """network that is trained on the set (default: the recipe's)"""
    ipc: int | None = None
    """budget in images per class (default: the smallest budget that pays for the content of the file)"""
    lr_net: float | None = None
    """learning rate of evaluation networks; the authors' files lack the value that trajectory matching has learned"""
    epochs: Annotated[int | None, tyro.conf.arg(aliases=("--epoch_eval_train",))] = None
    """epochs for which evaluation networks are trained (default: the recipe's)"""
    dsa_strategy: str | None = None
    """augmentations while evaluation networks are trained, joined by underscores, or none (default: the recipe's)"""
    zca: bool = False
    """say that the images are ZCA-whitened, as those of some ancestors of FreD are"""
    pixels: PixelValues | None = None
    """what the pixel values in the file are: normalised (as the authors' scripts write them), or those of pixels:
    unit (0..1), signed (-1..1) or bytes (0..255), which are normalised by the mean and std of --dataset
    (default: normalised, with a warning if the values look like those of pixels)"""
    soft_labels: SoftLabelKind | None = None
    """what the labels [N, C] in the file are, if it holds a number for each class: probabilities,
    or logits, of which the softmax is taken (default: probabilities)"""

    def __post_init__(self) -> None:
        if self.dataset is not None:
            self.dataset, self.subset = resolve(self.dataset, self.subset)
            check_dataset(self.dataset, self.subset)
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise InputError(f"there is no objective '{self.objective}': give one of {', '.join(OBJECTIVES)}")


def from_authors(
    authors: AuthorsSet,
    provenance: Provenance | None = None,
    as_pixels: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[SynSet, dict[str, Any]]:
    """Convert the authors' set into a synthetic set and its metadata, which `save_synset` accepts.

    as_pixels: store the images unchanged, with the transform "identity", k = d and ipc = n (d pixels, n images per
    class). Raises InputError for images that are not a FreD set (unless as_pixels is given), and for a provenance that
    contradicts the images or cannot work.
    """
    provenance = provenance or Provenance()
    check_least(provenance, "epochs", 0)
    check_positive(provenance, "lr_net")
    ipc = provenance.ipc or authors.num_per_class
    if provenance.pixels in PIXELS and provenance.ipc is None and not as_pixels:
        # The recipe's mean and std may depend on the budget, which can only be recovered from normalised images.
        ipc = recover(_normalised(authors, provenance, ipc)).ipc
    authors = _normalised(authors, provenance, ipc)
    if as_pixels:
        if provenance.ipc not in (None, authors.num_per_class):
            raise InputError(
                f"--as_pixels keeps {counted(authors.num_per_class, 'image')} per class, which is ipc "
                f"{authors.num_per_class}: leave out --ipc {provenance.ipc}"
            )
        synset, residual = opening.as_pixels(authors, device), 0.0
        recipe = _recipe(provenance, authors.num_per_class)
    else:
        found = recover(authors, provenance.ipc)
        recipe, residual = _recipe(provenance, found.ipc), found.residual
        values = {} if recipe is None else recipe.values
        steps: dict[str, Any] = {key: values.get(key) or 0.0 for key in ("lr_freq", "mom_freq")}
        synset = opening.synset_of(authors, found.coefficients, found.positions, found.ipc, device, **steps)
    source = opening.source_of(authors, residual)
    if provenance.pixels is not None:
        source["pixels"] = provenance.pixels
    return synset, {**_metadata(authors, provenance, recipe), "source": source}


def _normalised(authors: AuthorsSet, provenance: Provenance, ipc: int) -> AuthorsSet:
    """Return the set with normalised values. Raises InputError if the mean and std that this needs are unknown."""
    mean, std = _statistics(authors, provenance, _recipe(provenance, ipc))
    if mean is None or std is None:
        if provenance.pixels in PIXELS:
            known = "leave it out with --zca" if provenance.zca else "give a --dataset that has both, such as CIFAR10"
            raise InputError(f"--pixels {provenance.pixels} takes a mean and a std to normalise by: {known}")
        return authors
    images = normalised_by(authors.images, provenance.pixels, (tuple(mean), tuple(std)), authors.files[0])
    return dataclasses.replace(authors, images=images)


# -- what is known of the set -------------------------------------------------------------------------------------


def likely_objective(dataset: str, ipc: int) -> str:
    """The objective that most likely made a set of this dataset and ipc.

    It is the first of `OBJECTIVES` with a published accuracy, otherwise the first with a recipe, otherwise TM.
    """
    found = {each: recipes.find(each, dataset, ipc) for each in OBJECTIVES}
    published = [each for each, recipe in found.items() if recipe.published]
    return next(iter([*published, *(each for each, recipe in found.items() if recipe.values)]), OBJECTIVES[0])


def defaults_of(objective: str, recipe: recipes.Recipe) -> dict[str, Any]:
    """The defaults of the objective's scripts that differ from `DistillOptions` and that the recipe does not set."""
    return {key: value for key, value in recipes.defaults(objective).items() if key not in recipe.values}


def _recipe(provenance: Provenance, ipc: int) -> recipes.Recipe | None:
    if provenance.dataset is None:
        return None
    return find_recipe(provenance.objective or likely_objective(provenance.dataset, ipc), provenance.dataset, ipc)


def _metadata(authors: AuthorsSet, provenance: Provenance, recipe: recipes.Recipe | None) -> dict[str, Any]:
    """The metadata that a distillation would write, with null for everything unknown."""
    like: DistillOptions | None = None
    if recipe is not None:
        like = dataclasses.replace(with_recipe(DistillOptions, recipe), **defaults_of(recipe.objective, recipe))
    model = provenance.model or next(iter(authors.accuracies or {}), None) or (like.model if like else None)
    mean, std = _statistics(authors, provenance, recipe)
    resized = provenance.dataset is not None and is_resizable(provenance.dataset)
    return {
        **opening.told_by_file(authors, provenance.zca, model),
        "dataset": provenance.dataset,
        "mean": mean,
        "std": std,
        "class_names": _class_names(authors, provenance),
        "image_size": authors.im_size[0] if resized else None,
        "resize": like and (recipe.values.get("resize", DataOptions.resize) if recipe else None),
        # The authors' version of torchvision does not antialias tensors.
        "antialias": None if provenance.dataset is None else not resized,
        "objective": provenance.objective if recipe is None else recipe.objective,
        "evaluation": _evaluation(provenance, like, recipe),
    }


def _evaluation(
    provenance: Provenance, like: DistillOptions | None, recipe: recipes.Recipe | None
) -> dict[str, Any] | None:
    """The `EvaluationProtocol` as metadata, without the entries that are unknown; None if all are."""
    known: dict[str, Any] = {}
    if like is not None and recipe is not None:
        protocol = EvaluationProtocol.of(like)
        known = protocol.as_metadata()
        if recipe.objective.endswith("TM") and protocol.kind == "dc":
            del known["lr"]  # the learned step size is not in the file
    given = {"epochs": provenance.epochs, "lr": provenance.lr_net, "strategy": provenance.dsa_strategy}
    return {**known, **{key: value for key, value in given.items() if value is not None}} or None


def _statistics(
    authors: AuthorsSet, provenance: Provenance, recipe: recipes.Recipe | None
) -> Statistics | tuple[list[float] | None, list[float] | None]:
    if provenance.dataset is None or provenance.zca:
        return None, None
    stats = recipe.values.get("cifar100_stats") if recipe is not None else None
    found = statistics("CIFAR10" if stats == "cifar10" and provenance.dataset == "CIFAR100" else provenance.dataset)
    if found is None:
        return None, None
    if len(found[0]) != authors.channels:
        raise InputError(
            f"the images of {authors.files[0]} have {authors.channels} channel(s), those of {provenance.dataset} "
            f"{len(found[0])}: give the --dataset that it was made from"
        )
    return list(found[0]), list(found[1])


def _class_names(authors: AuthorsSet, provenance: Provenance) -> list[str] | None:
    """The class names of an ImageNet subset; None for other datasets, whose names are known only after reading them."""
    key = (provenance.dataset or "").removeprefix(PREFIX)
    if provenance.dataset is None or key == provenance.dataset:
        return None
    names = list(SUBSETS[key].values())
    if len(names) != authors.num_classes:
        raise InputError(
            f"{authors.files[0]} has {authors.num_classes} classes, {provenance.dataset} has {len(names)}: "
            "give the --dataset that it was made from"
        )
    return names
