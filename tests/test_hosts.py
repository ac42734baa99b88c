"""A synthetic set in a program of somebody else: its defaults for new tensors, and the mistakes that it can make."""

import numpy as np
import pytest
import torch

from common import SynSet
from common.synset.packed import PackedArgs, PackedSet
from common.synset.synset import SynSetArgs
from common.system.errors import InputError

KIND = {"channel": 3, "num_classes": 2, "im_size": (8, 8), "device": "cpu", "ipc": 1, "msz_per_channel": 16}
STEP = {"lr_freq": 1.0, "mom_freq": 0.5}
IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(2).repeat_interleave(10)
INDICES = [list(range(10)), list(range(10, 20))]


def make(**changes):
    synset = SynSet(SynSetArgs(**{**KIND, **STEP, **changes}))
    synset.init(IMAGES, LABELS, INDICES)
    return synset


def packed(**changes):
    budget = {"bits_per_class": 3 * 64 * 32, "num_per_class": 8, **changes}
    synset = PackedSet(PackedArgs(**{**KIND, "msz_per_channel": 0, **STEP, "storage": "coded", **budget}))
    synset.init(IMAGES, LABELS, INDICES)
    return synset


def after_an_update(start, **changes):
    """What a set decodes to after one update, and some images of it."""
    synset = start(**changes)
    images, _ = synset.get()
    images.square().sum().backward()
    synset.optim_step()
    return [synset.coefficients.detach(), synset.decode().detach(), *synset.get([3, 1], need_copy=True)], synset


@pytest.fixture
def torch_defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


CHANGES = [
    {}, {"optimizer": "adam"}, {"transform": "dwt"}, {"transform": "dft"}, {"transform": "identity"},
    {"selection": "random"}, {"selection": "low"}, {"selection_images": "class"},
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("device", [None, "meta"])
@pytest.mark.parametrize(
    ("start", "changes"),
    [*((make, each) for each in CHANGES), (packed, {})],
    ids=lambda each: str(each) if isinstance(each, dict) else each.__name__,
)
def test_the_defaults_of_the_host_change_nothing(torch_defaults, start, changes, dtype, device):
    expected, _ = after_an_update(start, **changes)
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    found, synset = after_an_update(start, **changes)
    assert synset.coefficients.dtype == torch.float32
    for each, there in zip(found, expected, strict=True):
        assert each.dtype == there.dtype
        assert each.device == there.device
        assert np.array_equal(each.numpy(), there.numpy())  # not torch.equal, which makes tensors of its own


@pytest.mark.parametrize(
    ("indices", "kind", "told"),
    [
        (8, TypeError, "indices is to be a list of whole numbers, or a tensor [R] of them, not int"),
        (torch.tensor(3), TypeError, "not one of shape []"),
        (torch.tensor([[0, 1]]), TypeError, "not one of shape [1, 2]"),
        ([[0, 1]], TypeError, "not one of shape [1, 2]"),
        (torch.tensor([0.5]), TypeError, "not of torch.float32"),
        ([0.5], TypeError, "not of torch.float32"),
        (torch.ones(8, dtype=torch.bool), TypeError, "not a mask: give mask.nonzero()[:, 0]"),
        ([0, 8], IndexError, "there is no image 8: there are 8, counted from 0"),
        (torch.tensor([-9]), IndexError, "there is no image -9: there are 8, counted from 0"),
        ([1 << 40], IndexError, "there is no image 1099511627776"),
    ],
    ids=str,
)
def test_an_index_that_names_no_image_is_refused(indices, kind, told):
    with pytest.raises(kind) as refused:
        make().get(indices)
    assert told in str(refused.value)


def test_indices_are_those_of_a_list():
    synset = make()
    images, labels = synset.get(need_copy=True)
    assert len(labels) == 8
    for indices in ([5, 0], [-3, -8], torch.tensor([5, 0], dtype=torch.int32), np.array([5, 0]), range(5, -1, -5)):
        some, of_some = synset.get(indices, need_copy=True)
        torch.testing.assert_close(some, images[[5, 0]])
        assert of_some.tolist() == labels[[5, 0]].tolist()
    assert synset.get([])[0].shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((IMAGES, LABELS[:15], INDICES), "there is no label in labels_all 15: there are 15, counted from 0"),
        ((IMAGES[:15], LABELS, INDICES), "there is no image in images_all 15: there are 15, counted from 0"),
    ],
)
def test_too_few_labels_or_images_are_told(given, told):
    with pytest.raises(IndexError) as refused:
        SynSet(SynSetArgs(**KIND, **STEP)).init(*given)
    assert str(refused.value) == told


@pytest.mark.parametrize("indices", [INDICES[:1], [*INDICES, []]])
def test_every_class_has_its_list_of_indices(indices):
    with pytest.raises(InputError, match=f"indices_class has the images of {len(indices)} classes, and the set has 2"):
        SynSet(SynSetArgs(**KIND, **STEP)).init(IMAGES, LABELS, indices)


def test_a_budget_is_a_whole_number():
    with pytest.raises(InputError, match=r"ipc is to be a whole number, not 0.5, for budgets are counted in whole im"):
        make(ipc=0.5)
    with pytest.raises(InputError, match=r"msz_per_channel is to be a whole number, not '16'"):
        make(msz_per_channel="16")
    with pytest.raises(InputError, match="ipc 0 leaves no budget: give at least 1 image per class"):
        make(ipc=0)
    assert make(ipc=np.int64(1), msz_per_channel=16.0).num_per_class == 4
