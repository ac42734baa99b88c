import dataclasses

import pytest
import torch

from common import frequency
from common.synset.file import save_synset
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from tests.synsets import args, real_images, started


@pytest.mark.parametrize(("im_size", "k", "ipc", "n"), [((8, 8), 16, 1, 4), ((8, 8), 24, 1, 2), ((4, 4, 4), 16, 2, 8)])
def test_shapes_and_budget(im_size, k, ipc, n):
    synset = started(im_size=im_size, msz_per_channel=k, ipc=ipc)
    images, labels = synset.get()
    assert images.shape == (4 * n, 3, *im_size)
    assert images.dtype == torch.float32
    assert labels.tolist() == [c for c in range(4) for _ in range(n)]
    assert synset.coefficients.shape == (4, n, 3, k)
    assert synset.positions.shape == (4, k)
    assert synset.mask.shape == (4, *im_size)
    assert synset.mask.flatten(1).sum(dim=1).tolist() == [k] * 4
    budget = synset.budget()
    assert budget["coefficients"] + budget["unused"] == budget["pixels_of_budget"]


def test_init_keeps_the_selected_coefficients_of_real_images():
    a = args(msz_per_channel=64)  # every coefficient: the images themselves
    images, labels, indices = real_images(a)
    synset = SynSet(a)
    synset.init(images, labels, indices)
    decoded, classes = synset.get()
    for image, c in zip(decoded, classes.tolist(), strict=True):
        distance = (images[indices[c]] - image).flatten(1).norm(dim=1)
        assert distance.min() < 1e-4
    masked = started()
    dense = frequency.dct(masked.decode(), 2).unflatten(0, (4, 4))
    outside = dense.masked_select(~masked.mask[:, None, None].expand_as(dense))
    assert outside.abs().max() < 1e-4 * dense.abs().max()


def test_get_by_index_and_copy():
    synset = started()
    images, labels = synset.get()
    for indices in ([5, 0, 15], torch.tensor([3]), range(4, 8)):
        some, classes = synset.get(indices)
        torch.testing.assert_close(some, images[torch.tensor(list(indices))])
        assert torch.equal(classes, labels[torch.tensor(list(indices))])
    copy, _ = synset.get(need_copy=True)
    assert not copy.requires_grad
    assert torch.equal(copy, images)
    assert synset.get([1], need_copy=True)[0].requires_grad is False


def test_steps_equal_those_of_the_dense_masked_tensor():
    """The authors' parameterisation: SGD with momentum on all frequencies, masked before the inverse transform."""
    synset = started()
    mask = synset.mask.repeat_interleave(synset.num_per_class, dim=0)[:, None]
    dense = frequency.dct(synset.decode().detach(), 2).requires_grad_()
    optimizer = torch.optim.SGD([dense], lr=100.0, momentum=0.5)
    draws = torch.Generator().manual_seed(1)
    for _ in range(3):
        target = torch.randn(16, 3, 8, 8, generator=draws)
        synset.optim_zero_grad()
        (synset.get()[0] - target).square().mean().backward()
        synset.optim_step()
        optimizer.zero_grad()
        (frequency.idct(dense * mask, 2) - target).square().mean().backward()
        optimizer.step()
        torch.testing.assert_close(synset.decode(), frequency.idct(dense * mask, 2), rtol=1e-5, atol=1e-5)


def test_gradient_by_class_adds_up_to_the_gradient_of_all():
    synset, whole = started(), started()
    (whole.get()[0] ** 3).sum().backward()
    sum((synset.get(range(c * 4, c * 4 + 4))[0] ** 3).sum() for c in range(4)).backward()
    torch.testing.assert_close(synset.coefficients.grad, whole.coefficients.grad)


def test_identity_transform_is_plain_pixels():
    synset = started(transform="identity", msz_per_channel=64, lr_freq=1.0, mom_freq=0.0)
    before = synset.decode().detach().clone()
    assert torch.equal(synset.coefficients.detach().flatten(0, 1).flatten(2), before.flatten(2))
    synset.get()[0].sum().backward()
    synset.optim_step()
    torch.testing.assert_close(synset.decode(), before - 1.0)


def test_state_continues_bit_for_bit():
    def update(synset, seed):
        synset.optim_zero_grad()
        weights = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        (synset.decode() * weights).sum().backward()
        synset.optim_step()

    straight = started()
    for seed in range(4):
        update(straight, seed)
    stopped = started()
    update(stopped, 0)
    update(stopped, 1)
    resumed = SynSet(args())
    resumed.load_state_dict(stopped.state_dict())
    update(resumed, 2)
    update(resumed, 3)
    assert torch.equal(resumed.coefficients, straight.coefficients)


def test_init_is_a_function_of_the_seed_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    assert torch.equal(started().coefficients, started().coefficients)
    assert not torch.equal(started().coefficients, started(seed=1).coefficients)
    assert torch.equal(torch.get_rng_state(), state)


def test_selection_images_class_surveys_all_images():
    a = args(selection="energy", selection_images="class", msz_per_channel=8)
    images, labels, indices = real_images(a)
    synset = SynSet(a)
    synset.init(images, labels, indices)
    energy = (frequency.dct(images, 2) / frequency.orthonormal_scale((8, 8)).float()).square().mean(dim=1).flatten(1)
    for c in range(4):
        assert set(synset.positions[c].tolist()) == set(energy[indices[c]].mean(dim=0).topk(8).indices.tolist())


def test_a_subclass_may_choose_positions_itself():
    class Corner(SynSet):
        def init_mask(self):
            self.positions = torch.arange(16, dtype=torch.int32).repeat(4, 1)

    a = args()
    synset = Corner(a)
    synset.init(*real_images(a))
    assert synset.mask[:, :2].all()


def test_any_object_with_the_attributes_will_do():
    typed = SynSetArgs(**vars(args()))
    synset = SynSet(typed)
    synset.init(*real_images(typed))
    assert torch.equal(synset.coefficients, started().coefficients)
    assert dataclasses.asdict(typed)["selection"] == "variance"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 0}, "ipc 0 leaves no budget"),
        ({"msz_per_channel": 65}, "8x8 images have 64"),
        ({"msz_per_channel": 0}, "out of range"),
        ({"msz_per_channel": 1}, "class 0 has 10 images, but ipc 1 with msz_per_channel 1 decodes 64"),
        ({"transform": "wave"}, "unknown transform"),
        ({"selection": "best"}, "unknown selection rule"),
        ({"selection_images": "some"}, "unknown selection_images"),
        ({"im_size": (8,)}, "two or three sides"),
    ],
)
def test_impossible_budgets_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        started(**changes)


def test_wrong_data_is_named():
    a = args()
    images, labels, indices = real_images(a)
    with pytest.raises(InputError, match="disagrees with labels_all"):
        SynSet(a).init(images, labels.roll(1), indices)
    with pytest.raises(InputError, match="the arguments say"):
        SynSet(a).init(images[:, :1], labels, indices)
    with pytest.raises(InputError, match="runs inside init"):
        SynSet(a).init_mask()


def test_stored_state_that_does_not_fit_is_refused():
    state = started().state_dict()
    with pytest.raises(InputError, match="were expected"):
        SynSet(args(msz_per_channel=8)).load_state_dict(state)
    state["positions"][0, 0] = 64
    with pytest.raises(InputError, match="damaged"):
        SynSet(args()).load_state_dict(state)


def test_a_set_that_holds_nothing_is_refused(tmp_path):
    synset = SynSet(args(msz_per_channel=1))  # one position of zeros is a valid choice, so the file would be, too
    for ask in (
        synset.get,
        synset.decode,
        synset.state_dict,
        lambda: synset.get([0], need_copy=True),
        lambda: synset.mask,
        synset.optim_zero_grad,
        synset.optim_step,
        lambda: save_synset(synset, tmp_path / "set.safetensors", {}),
    ):
        with pytest.raises(InputError, match=r"holds nothing yet: call init"):
            ask()
    assert not list(tmp_path.iterdir())
    assert synset.budget()["images_per_class"] == 64  # which needs no images
    stored = started()
    with pytest.raises(InputError, match="were expected"):
        synset.load_state_dict(stored.state_dict())
    with pytest.raises(InputError, match="holds nothing yet"):
        synset.get()


def test_what_is_black_is_not_empty():
    a = args()
    images, labels, indices = real_images(a)
    black = SynSet(a)
    black.init(torch.zeros_like(images), labels, indices)
    assert not black.get()[0].any()
    again = SynSet(a)
    again.load_state_dict(black.state_dict())
    assert not again.get()[0].any()
    by_hand = SynSet(a)
    with torch.no_grad():
        by_hand.coefficients[0, 0, 0, 0] = 1.0
    by_hand.positions = torch.arange(16, dtype=torch.int32).repeat(4, 1)
    assert by_hand.get()[0].any()


@pytest.mark.cuda
def test_cuda_equals_cpu():
    here, there = started(), started(device="cuda")
    torch.testing.assert_close(there.decode().cpu(), here.decode())
    assert torch.equal(there.positions.cpu(), here.positions)
