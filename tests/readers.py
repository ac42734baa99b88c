"""What reads the files of this project, each in a few milliseconds, as a command would."""

import json
from functools import lru_cache
from itertools import count

import torch
from safetensors.torch import save_file

from common.config.command_line import parse
from common.config.evaluate_options import EvaluateOptions
from common.datasets import load_dataset
from common.images.image_data import content_of
from common.pretrained.share import card
from common.report.description import describe_set
from common.report.record import read_run
from common.report.run_page import head_of, write_run_report
from common.report.show import shown
from common.runs.folder import Run
from common.synset.file import file_bytes, load_synset, set_checksum
from common.synset.hub import parse_address
from common.system.text import percent_with_std
from common.training.evaluation_setup import prepare_evaluation
from DM.distill import Options
from tests.command_line import SHORT

CPU = torch.device("cpu")


@lru_cache
def content():
    return content_of(*load_dataset("digits"))


@lru_cache
def asked(path):
    return parse(Options, "DM", [*SHORT, "--save_path", str(path)])


def opened(path):
    """Open a run as its command does; whether it is finished."""
    options, sources = asked(path)
    run = Run(options, sources, "DM", CPU, content())
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
