"""A description of a synthetic set in words, from the metadata of its file."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from common.config.places import dataset_folder
from common.system.text import counted, describe_bytes, in_percent

UNKNOWN = "unknown"


def describe_set(metadata: dict[str, Any]) -> dict[str, str]:
    """Return label -> text: the origin of a set, its contents, and the accuracy of networks trained on it.

    metadata: as `load_synset` returns it. The text is "unknown" for what the file does not hold. A dataset in a folder
    is given by the name of that folder, without its path.
    """
    channels, ipc, k = metadata["channel"], metadata["ipc"], metadata["msz_per_channel"]
    per_class = ipc * math.prod(metadata["im_size"]) // k
    numbers = metadata["num_classes"] * per_class * channels * k
    sides = " x ".join(map(str, metadata["im_size"]))
    known = {
        "dataset": metadata.get("dataset") and dataset_folder(metadata["dataset"]),
        "budget": f"{counted(ipc, 'image')} per class (ipc), {metadata['num_classes']} classes",
        "images": f"{per_class} per class, {sides} pixels, {counted(channels, 'channel')}",
        "coefficients": f"{kept(metadata)} per channel, chosen by {metadata['selection']}; "
        f"{numbers:,} numbers, {describe_bytes(4 * numbers)}",
        "objective": metadata.get("objective"),
        "network": metadata.get("network") or metadata.get("model"),
        "accuracy": _accuracy(metadata.get("accuracy")),
        "code": metadata.get("version"),
    }
    return {label: text or UNKNOWN for label, text in known.items()}


def kept(metadata: dict[str, Any]) -> str:
    """Say what is stored per channel of an image, e.g. "64 of 1,024 DCT coefficients" or "64 of 64 pixels"."""
    transform = metadata["transform"]
    kind = "pixels" if transform == "identity" else f"{transform.upper()} coefficients"
    return f"{metadata['msz_per_channel']:,} of {math.prod(metadata['im_size']):,} {kind}"


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
