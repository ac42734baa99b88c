"""What a command would miss, as a list: dataset files, and experts with the command that trains them."""

from __future__ import annotations

from typing import Any

from common.config.options import DataOptions
from common.datasets import default_data_path
from common.datasets.presence import is_there, is_unpacked
from common.disk.paths import expanded
from common.experts.folder import expert_files
from common.experts.open import find_buffer, training_command
from common.experts.replay import replay_files


def missing_data(options: DataOptions) -> str | None:
    """What of the dataset is not there, or is still to be unpacked; None where it can be read.

    Raises InputError for a dataset that does not exist, and for options that do not fit it.
    """
    options.check_images()
    there = is_there(options.dataset, options.data_path)
    place = expanded(options.data_path or default_data_path(options.dataset))
    if there is False:
        if options.dataset.startswith("folder:"):
            return f"the images: {options.dataset.removeprefix('folder:')} is not a folder"
        fetched = "a run would download them" if _is_fetched(options) else "docs/datasets.md says where they come from"
        return f"the images of {options.dataset} in {place}: {fetched}"
    if is_unpacked(options.dataset, options.data_path) is False:
        return f"the images of {options.dataset} are an archive in {place}: a run would unpack it"
    return None


def _is_fetched(options: DataOptions) -> bool:
    asked_for = options.dataset.startswith("imagenet-") or options.dataset == "3D-MNIST"  # by hand, with an account
    return not (options.no_download or asked_for)


def missing_experts(options: Any, objective: str) -> str | None:
    """Which experts trajectory matching lacks, with the command that trains them; None where there are some."""
    folder = find_buffer(options.buffer_path, options.dataset, options.model, options.zca)
    if expert_files(folder) or replay_files(folder):
        return None
    start = options.max_start_epoch  # 0: the experts are to suggest it
    epochs = start - 1 + options.expert_epochs if start else None
    command = training_command(folder, options, options.model, epochs, objective)
    return f"experts in {folder}; to train them: {command}"
