"""A synthetic set in words, from the metadata of its file."""

from __future__ import annotations

import math
from typing import Any

from common.config.places import dataset_folder
from common.system.text import counted, describe_bytes, in_percent

UNKNOWN = "unknown"


def describe_set(metadata: dict[str, Any]) -> dict[str, str]:
    """Label -> text: what a set was made from and how, what it holds, and how well networks do that are trained on it.

    metadata: as `load_synset` gives it. What a file does not say is "unknown"; of a dataset that lies in a folder, the
    folder's own name is given and not its place.
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
    """What is stored of each channel of an image: "64 of 1,024 DCT coefficients", "64 of 64 pixels"."""
    transform = metadata["transform"]
    kind = "pixels" if transform == "identity" else f"{transform.upper()} coefficients"
    return f"{metadata['msz_per_channel']:,} of {math.prod(metadata['im_size']):,} {kind}"


def _accuracy(figures: dict[str, Any] | None) -> str | None:
    if not figures:
        return None
    networks = f"{figures['n']} x {figures['network']}" if "network" in figures else f"{figures['n']} networks"
    return f"{in_percent(figures)} ({networks}), measured on the test images"
