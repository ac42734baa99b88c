"""What reads the files of this project, each in a few milliseconds, as a command would."""

import dataclasses
import json
import shutil
from functools import lru_cache
from itertools import count

import torch
from safetensors.torch import save_file

from common.config.command_line import parse
from common.config.evaluate_options import EvaluateOptions
from common.datasets import load_dataset
from common.experts.curve import suggest_max_start_epoch
from common.experts.folder import read_manifest, read_snapshots
from common.images.image_data import content_of
from common.pretrained.share import card
from common.report.description import describe_set
from common.report.record import read_run
from common.report.run_page import head_of, write_run_report
from common.report.show import shown
from common.runs.finished import how_far, is_finished_run
from common.runs.folder import Run
from common.synset.authors import read_authors
from common.synset.file import export_pair, file_bytes, load_synset, set_checksum
from common.synset.hub import parse_address
from common.system.text import percent_with_std
from common.training.evaluation_setup import prepare_evaluation
from DM.distill import Options
from tests.command_line import SHORT, call, run_folder
from tests.conftest import ROOT
from tests.mutations import answered

CPU = torch.device("cpu")
HARDWARE = {"device": "cpu", "cpu": "a CPU", "threads": 1, "torch": "2.6"}


def lighten(patch):
    """From now on, to open a run asks nothing of the hardware, waits for no disk and draws nothing."""
    patch.setattr("os.fsync", lambda file: None)
    patch.setattr("common.report.run_page.svg_uri", lambda draw: "")
    patch.setattr("common.runs.folder.describe_hardware", lambda device: HARDWARE)
    patch.setattr("common.runs.folder.code_version", lambda: "1")
    load = lru_cache(load_dataset)
    patch.setattr("common.training.evaluation_setup.content_of", lambda *data: content())
    patch.setattr("common.training.evaluation_setup.load_dataset", lambda *a, **b: load(*a, **_hashable(b)))


def _hashable(given):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def made(path):
    """A folder with a finished run, its set exported as a pair beside it, and a buffer; returns it."""
    result = call("DM/distill.py", *SHORT, "--save_path", path)
    assert result.code == 0, result.err
    export_pair(load_synset(run_folder(path) / "synset.safetensors")[0], path)
    (buffer,) = (ROOT / "tests/old_runs/buffers").glob("*/*")
    shutil.copytree(buffer, path / "buffer")
    return path


@lru_cache
def content():
    return content_of(*load_dataset("digits"))


@lru_cache
def asked():
    """What the command of `made` says; reading it takes longer than all readers together."""
    return parse(Options, "DM", [*SHORT, "--save_path", "."])


def opened(path):
    """Open a run as its command does; whether it is finished."""
    options, sources = asked()
    run = Run(dataclasses.replace(options, save_path=str(path)), dict(sources), "DM", CPU, content())
    try:
        run.load_checkpoint()
        return run.summary is not None
    finally:
        run.close()


def with_metadata(file, tensors, text):
    """A file with other metadata, whose checksum is right if there can be one."""
    try:
        metadata = json.loads(text)
        metadata.pop("checksum", None)
        text = json.dumps(metadata | {"checksum": set_checksum(metadata, tensors)})
    except RecursionError:
        pass
    save_file(tensors, file, metadata={"fred": text})


def used(file):
    """Use all that a set says of itself."""
    synset, metadata = load_synset(file)
    describe_set(metadata)
    file_bytes(file)
    card(parse_address("hf://owner/name"), metadata)
    shown(synset.get(need_copy=True)[0], metadata)
    prepare_evaluation(EvaluateOptions(synset=str(file), epoch_eval_train=1), "DM", {}, CPU, (synset, metadata))


PAGES = count()


def shown_on_a_page(folder):
    """Use all that a run says of itself; every fifth time on a page, which takes a while."""
    run = read_run(folder)
    head_of(run, folder)
    assert run.command()
    assert run.budget
    assert run.updates >= 0
    assert all(isinstance(percent_with_std(point), str) for point in run.points.values())
    if next(PAGES) % 5 == 0:
        write_run_report(folder)


def read_everything(path):
    """What of the files of `made` is refused: each reader by itself, none of which may end in another error."""
    folder, buffer = run_folder(path), path / "buffer"
    (expert,) = buffer.glob("expert_*.safetensors")
    return [
        answered(lambda: used(folder / "synset.safetensors"), path),
        answered(lambda: shown_on_a_page(folder), path),
        answered(lambda: (is_finished_run(folder), how_far(folder, 2)), path),
        answered(lambda: opened(path), path),
        answered(lambda: read_authors(path / "images_best.pt"), path),
        answered(lambda: read_manifest(buffer), path),
        answered(lambda: (list(read_snapshots(expert, [0, 1])), suggest_max_start_epoch(buffer, 1)), path),
    ]
