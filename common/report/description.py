"""A description of a synthetic set in words, from the metadata of its file."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from common.config.places import dataset_folder
from common.frequency import number_of
from common.system.text import counted, describe_bytes, in_percent

UNKNOWN = "unknown"


def describe_set(metadata: dict[str, Any]) -> dict[str, str]:
    """Return label -> text: the origin of a set, its contents, and the accuracy of networks trained on it.

    metadata: as `load_synset` returns it. The text is "unknown" for what the file does not hold. A dataset in a folder
    is given by the name of that folder, without its path.
    """
    channels, ipc, k = metadata["channel"], metadata["ipc"], metadata["msz_per_channel"]
    storage = metadata.get("storage")
    if storage is None:
        per_class = ipc * math.prod(metadata["im_size"]) // k
        numbers = metadata["num_classes"] * per_class * channels * k
        budget = f"{counted(ipc, 'image')} per class (ipc), {metadata['num_classes']} classes"
        stored = f"{kept(metadata, 'per channel, chosen by {}')}; {numbers:,} numbers, {describe_bytes(4 * numbers)}"
    else:
        per_class, numbers = storage["images_per_class"], storage["numbers"]
        budget = f"{storage['bits_per_class']:,} bits per class, {metadata['num_classes']} classes"
        stored = (
            f"{kept(metadata, '')}; {storage['bytes']:,} bytes that a decoder needs; {numbers:,} numbers, "
            f"{describe_bytes(4 * numbers)} by the paper's count of 4 bytes each"
        )
    sides = " x ".join(map(str, metadata["im_size"]))
    files = metadata.get("files")
    known = {
        "dataset": metadata.get("dataset") and dataset_folder(metadata["dataset"]),
        "budget": budget,
        "images": f"{per_class} per class, {sides} pixels, {counted(channels, 'channel')}",
        **({} if files is None else {"imported": describe_files(files)}),
        "coefficients": stored,
        **({"labels": f"soft, {metadata['soft_labels']} of every class"} if "soft_labels" in metadata else {}),
        "objective": metadata.get("objective"),
        "network": metadata.get("network") or metadata.get("model"),
        "accuracy": _accuracy(metadata.get("accuracy")),
        "code": metadata.get("version"),
    }
    return {label: text or UNKNOWN for label, text in known.items()}


def describe_files(files: dict[str, Any]) -> str:
    """The metadata entry "files" of a set that was imported, in words: what its images take on the disk."""
    return (
        f"from {files['name']} ({files['kind']}), {files['bytes']:,} bytes on the disk, "
        f"{files['bits_per_class']:,} bits per class"
    )


def kept(metadata: dict[str, Any], then: str) -> str:
    """Say what is stored, e.g. "64 of 1,024 DCT coefficients" or "all 64 pixels" of a channel, then `then`.

    {} in `then` is the rule by which positions are chosen; where all are kept, what follows a comma is left out. Of
    sets with a payload it is said how they are stored.
    """
    if "storage" in metadata:
        return _packed(metadata["storage"], metadata)
    k, d, numbers = metadata["msz_per_channel"], math.prod(metadata["im_size"]), f"{number_of(metadata['transform'])}s"
    if k == d:
        return f"all {d:,} {numbers} {then.partition(',')[0]}"
    of = f"{k:,} of {d:,} {numbers}"
    return f"{of} {then.format(metadata['selection'])}"


def _packed(storage: dict[str, Any], metadata: dict[str, Any]) -> str:
    blocks = f" of blocks of {storage['block']}" if storage["block"] else ""
    colours = f" in {storage['colour']} colours" if metadata["channel"] == 3 else ""
    if storage["kind"] == "coded":
        return f"coded: DCT coefficients{blocks}{colours}, rounded and entropy-coded"
    where = "chosen for all channels at once" if storage["positions"] == "joint" else "the same in each channel"
    count = metadata["msz_per_channel"] * metadata["channel"]
    of = f"{count:,} of {math.prod(metadata['im_size']) * metadata['channel']:,} DCT coefficients"
    return f"{storage['kind']}: {of}{blocks}{colours}, {where}"


def needed_bytes(budget: dict[str, int]) -> int:
    """The bytes that a decoder needs, of the budget of a set: its payload, or its coefficients and positions."""
    return budget.get("payload_bytes", budget["coefficient_bytes"] + budget.get("position_bytes", 0))


def clipped(pixels: Tensor) -> str:
    """Say how many pixel values a picture cannot show, e.g. "12.5 % of the pixel values (-0.30 to 1.70) are clipped".

    pixels: of any shape, before they are limited to 0..1. Returns "" if all of them are in that range; half a level of
    8 bits beyond it counts as in it, since it makes no difference in a picture.
    """
    half_level = 0.5 / 255
    share = float(((pixels < -half_level) | (pixels > 1 + half_level)).float().mean())
    if not share:
        return ""
    told = "less than 0.1" if share < 0.001 else f"{100 * share:.1f}"
    lowest, highest = float(pixels.min()), float(pixels.max())
    return f"{told} % of the pixel values ({lowest:.2f} to {highest:.2f}) lie outside 0..1 and are clipped"


def _accuracy(figures: dict[str, Any] | None) -> str | None:
    if not figures:
        return None
    networks = f"{figures['n']} x {figures['network']}" if "network" in figures else counted(figures["n"], "network")
    return f"{in_percent(figures)} ({networks}), measured on the test images"
