"""Small buffers of experts, in our format and in the authors'."""

import pytest
import torch

from common.experts.folder import describe, filling, save_expert
from common.networks import build_network
from common.system.errors import InputError
from tests.image_sets import make_data

MODEL = "ConvNetD1W32"
EPOCHS, EXPERTS = 4, 3
MADE_BY = {"train_epochs": EPOCHS, "keep_epochs": EPOCHS, "lr_teacher": 0.01, "mom": 0.0}


def small_network(model=MODEL):
    return build_network(model, 3, 3, (4, 6))


def made_for(**changed):
    return {**describe(make_data(), MODEL, small_network()), **changed}


def random_rows(count=EXPERTS, epochs=EPOCHS):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, epochs + 1, made_for()["parameter_count"], generator=rng)


def fill(folder, rows=None, described=None):
    with filling(folder, described or made_for(), MADE_BY):
        for number, trajectory in enumerate(random_rows() if rows is None else rows):
            save_expert(folder, number, trajectory, {EPOCHS: 0.5})
    return folder


def replay(folder, rows, number=0, network=None):
    """A file as the authors' buffer.py writes it: experts, snapshots, tensors in the order of parameters()."""
    shapes = [parameter.shape for parameter in (network or small_network()).parameters()]
    sizes = [shape.numel() for shape in shapes]
    content = [
        [[part.reshape(shape) for part, shape in zip(row.split(sizes), shapes, strict=True)] for row in trajectory]
        for trajectory in rows
    ]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / f"replay_buffer_{number}.pt")
    return folder


def truncate(file):
    """As a full disk would leave it."""
    file.write_bytes(file.read_bytes()[:-100])


def refused(action, *parts):
    """An InputError of one line that says these things."""
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
