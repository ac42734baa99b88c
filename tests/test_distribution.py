import pytest
import torch

from common.matching import augment
from common.matching.distribution import match
from common.networks import build_network
from common.synset.synset import SynSet
from tests.image_sets import Recorded
from tests.synsets import args, real_images

CLASSES, REAL = 4, 6


def setting(dtype):
    a = args()
    synset = SynSet(a)
    synset.init(*real_images(a))
    draws = torch.Generator().manual_seed(2)
    real = torch.randn(CLASSES * REAL, 3, 8, 8, generator=draws).to(dtype)
    network = build_network("ConvNetD2W32", 3, CLASSES, (8, 8)).to(dtype).requires_grad_(False)
    strategy = augment.sample("color_crop_cutout_flip_scale_rotate", CLASSES, draws, (8, 8))
    return synset, network, real, strategy


def class_by_class(embed, real, synthetic, drawn):
    """The authors' loop: one class at a time, summed, one backward."""
    loss = torch.zeros((), dtype=real.dtype)
    for c in range(CLASSES):
        params = drawn[c : c + 1]
        rows = len(synthetic) // CLASSES
        there = embed(augment.apply(real[c * REAL : (c + 1) * REAL], params)).mean(dim=0)
        here = embed(augment.apply(synthetic[c * rows : (c + 1) * rows], params)).mean(dim=0)
        loss = loss + ((there.detach() - here) ** 2).sum()
    return loss


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 5, 8, 100])
def test_every_cut_equals_the_loop_over_classes(dtype, tolerance, chunk):
    synset, network, real, drawn = setting(dtype)
    images = synset.decode().to(dtype)
    expected = class_by_class(network.embed, real, images, drawn)
    (gradient,) = torch.autograd.grad(expected, synset.coefficients)

    images = synset.decode().to(dtype)
    loss, image_gradient = match(network.embed, real, images, CLASSES, drawn, chunk)
    images.backward(image_gradient)
    assert not loss.requires_grad
    assert abs(loss - expected) <= tolerance * abs(expected)
    # The coefficients are float32 whatever the images are: compare above their own rounding.
    assert (synset.coefficients.grad - gradient).norm() <= max(tolerance, 1e-7) * gradient.norm()


@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 8])
def test_image_gradients_agree_to_1e_8_in_float64(chunk):
    synset, network, real, drawn = setting(torch.float64)
    images = synset.decode().detach().double().requires_grad_()
    expected = class_by_class(network.embed, real, images, drawn)
    (gradient,) = torch.autograd.grad(expected, images)
    _, found = match(network.embed, real, images, CLASSES, drawn, chunk)
    assert (found - gradient).norm() <= 1e-8 * gradient.norm()


@pytest.mark.parametrize("chunk", [None, 4, 6, 13])
def test_real_images_may_be_gathered_as_they_are_read(chunk):
    """Never more than a chunk, or a class where that is more: a whole batch of Tiny ImageNet would take 2.5 GB."""
    synset, network, real, drawn = setting(torch.float64)
    images = synset.decode().detach().double()
    recorded = Recorded(real)
    loss, gradient = match(network.embed, recorded, images, CLASSES, drawn, chunk)
    expected = match(network.embed, real, images, CLASSES, drawn, chunk)
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])
    assert sum(recorded.asked) == len(real)
    assert chunk is None or max(recorded.asked) <= max(chunk, REAL)


def test_batch_statistics_are_those_of_one_joint_forward():
    synset, _, real, _ = setting(torch.float64)
    network = build_network("ConvNetD2W32BN", 3, CLASSES, (8, 8)).double().requires_grad_(False).train()
    images = synset.decode().detach().double().requires_grad_()
    there = network.embed(real).unflatten(0, (CLASSES, -1)).mean(dim=1)
    here = network.embed(images).unflatten(0, (CLASSES, -1)).mean(dim=1)
    expected = (there - here).square().sum()
    loss, gradient = match(network.embed, real, images, CLASSES)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, images)[0])


def test_equal_sets_have_no_loss_and_no_gradient():
    _, network, real, _ = setting(torch.float64)
    loss, gradient = match(network.embed, real, real, CLASSES)
    assert loss < 1e-20
    assert gradient.abs().max() < 1e-12
