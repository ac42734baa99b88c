import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from common.matching import augment
from common.matching.trajectory import Step, build_student, flatten, graph_bytes, match
from common.networks import build_network, reinitialise
from common.system.devices import precision
from common.system.errors import InputError

ALL = "color_crop_cutout_flip_scale_rotate"
IMAGES, CLASSES, SIZE = 7, 3, (8, 8)
NETWORKS = ["ConvNetD2W16", "ConvNetD1W16GN", "ConvNetD1W16NN", "ConvNetD1W16LN"]


def setting(name="ConvNetD1W16", dtype=torch.float64):
    """A network, and the tensors that `match` takes first: start, target, images, labels, step size."""
    network = build_network(name, 3, CLASSES, SIZE).to(dtype)
    reinitialise(network, 0)
    draws = torch.Generator().manual_seed(1)
    start = flatten(network.parameters())
    target = start + 0.05 * torch.randn(start.shape, generator=draws, dtype=dtype)
    images = torch.randn(IMAGES, 3, *SIZE, generator=draws, dtype=dtype)
    labels = torch.randint(CLASSES, (IMAGES,), generator=draws)
    return network, (start, target, images, labels, torch.tensor(0.1, dtype=dtype))


def drawn_steps(count, strategy=ALL, batch=5):
    """Batches of 5 of the 7 images, so that images come again, and every third step all of them."""
    draws = torch.Generator().manual_seed(2)
    steps = []
    for t in range(count):
        rows = None if t % 3 == 2 else torch.randperm(IMAGES, generator=draws)[:batch]
        size = IMAGES if rows is None else batch
        steps.append(Step(rows, augment.sample(strategy, size, draws, SIZE, one_strategy=True)))
    return steps


def textbook(network, start, target, images, labels, step_size, steps):
    """The unroll as the authors write it, with the module's own parameters exchanged by torch."""
    images, step_size = images.clone().requires_grad_(), step_size.clone().requires_grad_()
    names, shapes = zip(*((name, p.shape) for name, p in network.named_parameters()), strict=True)
    theta = start.clone().requires_grad_()
    for rows, augmentation in steps:
        rows = torch.arange(len(images)) if rows is None else rows
        x = images[rows] if augmentation is None else augment.apply(images[rows], augmentation)
        pieces = theta.split([shape.numel() for shape in shapes])
        parameters = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        loss = F.cross_entropy(torch.func.functional_call(network, parameters, (x,)), labels[rows])
        theta = theta - step_size * torch.autograd.grad(loss, theta, create_graph=True)[0]
    loss = (theta - target).pow(2).sum() / (start - target).pow(2).sum()
    return loss.detach(), *torch.autograd.grad(loss, (images, step_size))


def assert_close(found, expected, tolerance):
    """Loss, gradient of the images, gradient of the step size."""
    for a, b in zip(found, expected, strict=True):
        assert not a.requires_grad
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_cut_of_the_adjoint_equals_the_plain_unroll(name, steps):
    network, tensors = setting(name)
    student = build_student(network)
    batches = drawn_steps(steps)
    expected = textbook(network, *tensors, batches)
    assert expected[1].norm() > 0
    assert_close(match(student, *tensors, batches, unroll="plain"), expected, 1e-8)
    for chunk in (None, 1, 3, 100):
        assert_close(match(student, *tensors, batches, chunk=chunk), expected, 1e-8)


@pytest.mark.parametrize("strategy", [*augment.STRATEGIES, "none"])
def test_every_augmentation_is_gone_back_through(strategy):
    network, tensors = setting()
    batches = drawn_steps(3, strategy)
    expected = match(build_student(network), *tensors, batches, unroll="plain")
    assert_close(match(build_student(network), *tensors, batches, chunk=2), expected, 1e-8)


def test_an_image_twice_in_a_batch_counts_twice():
    network, tensors = setting()
    batches = [Step(torch.tensor([4, 4, 1])), Step(torch.tensor([1, 4, 4, 4]))]
    expected = textbook(network, *tensors, batches)
    assert_close(match(build_student(network), *tensors, batches, chunk=2), expected, 1e-8)


def test_gradients_are_those_of_finite_differences():
    network, (start, target, images, labels, step_size) = setting("ConvNetD1W16ASwish")  # smooth: no kink to step over
    student, batches = build_student(network), drawn_steps(3, "scale")
    _, to_images, to_step_size = match(student, start, target, images, labels, step_size, batches)
    shift = torch.randn(images.shape, generator=torch.Generator().manual_seed(3), dtype=images.dtype)

    def slope(change):
        """Central difference of the loss along `change` of images and step size."""
        h = 1e-5
        there, back = (
            match(student, start, target, images + e * change[0], labels, step_size + e * change[1], batches)
            for e in (h, -h)
        )
        return (there[0] - back[0]) / (2 * h)

    torch.testing.assert_close((to_images * shift).sum(), slope((shift, 0)), rtol=1e-6, atol=0)
    torch.testing.assert_close(to_step_size, slope((0, 1)), rtol=1e-6, atol=0)


def test_float32_agrees_and_repeats_bit_for_bit():
    network, tensors = setting("ConvNetD2W16", torch.float32)
    student, batches = build_student(network), drawn_steps(7)
    expected = match(student, *tensors, batches, unroll="plain")
    found, again = (match(student, *tensors, batches, chunk=3) for _ in range(2))
    assert_close(found, expected, 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert all(t.dtype == torch.float32 for t in found)


def test_a_student_of_half_the_distance_has_a_quarter_of_the_loss():
    """The ratio of squared distances: with a step size of 0 the student stays at the start."""
    network, (start, target, images, labels, _) = setting()
    loss, to_images, to_step_size = match(
        build_student(network), start, target, images, labels, torch.tensor(0.0, dtype=start.dtype), [Step()]
    )
    assert loss == 1
    assert not to_images.any()
    assert to_step_size != 0
    gradient = build_student(network).gradient(start, images, labels) / len(images)
    halfway = torch.tensor(0.5, dtype=start.dtype)
    loss, *_ = match(build_student(network), start, start - gradient, images, labels, halfway, [Step()])
    torch.testing.assert_close(loss, torch.tensor(0.25, dtype=start.dtype))


class Member:
    """One of several threads that work on a trajectory together."""

    def __init__(self, number, count, barrier, given):
        self.number, self.count, self.barrier, self.given = number, count, barrier, given

    def share(self, count):
        return self.number * count // self.count, (self.number + 1) * count // self.count

    def sum_(self, *tensors):
        self.given[self.number] = [tensor.clone() for tensor in tensors]
        self.barrier.wait(60)
        for tensor, parts in zip(tensors, zip(*self.given, strict=True), strict=True):
            tensor.copy_(sum(parts))
        self.barrier.wait(60)


@pytest.mark.parametrize("count", [2, 3])
def test_every_member_of_a_team_gets_the_whole_result(count):
    network, tensors = setting()
    batches = drawn_steps(3)
    expected = match(build_student(network), *tensors, batches)
    barrier, given = threading.Barrier(count), [None] * count
    members = [Member(number, count, barrier, given) for number in range(count)]
    # A network each: torch.func puts its parameters into the module for the time of a call.
    students = [build_student(setting()[0]) for _ in members]
    with ThreadPoolExecutor(count) as pool:
        results = list(
            pool.map(lambda one, member: match(one, *tensors, batches, chunk=3, team=member), students, members)
        )
    for found in results:
        assert_close(found, expected, 1e-8)
    with pytest.raises(ValueError, match="cannot be shared by a team"):
        match(students[0], *tensors, batches, unroll="plain", team=members[0])


def test_batch_normalisation_leaves_its_statistics_alone():
    network, tensors = setting("ConvNetD1W16BN")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    student, batches = build_student(network), drawn_steps(2)
    expected = match(student, *tensors, batches, unroll="plain")
    assert_close(match(student, *tensors, batches), expected, 1e-8)
    assert before
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name])
    assert_close(textbook(network, *tensors, batches), expected, 1e-8)  # last: this one does change them
    with pytest.raises(InputError, match="leave out the chunk"):
        match(student, *tensors, batches, chunk=3)


def test_only_architecture_and_tensors_matter():
    """Weights of the network, and the caller's tensors, are neither read nor changed."""
    network, tensors = setting()
    images = (2 * tensors[2].requires_grad_()) / 2  # with a graph, as decoded images have
    tensors = (*tensors[:2], images, *tensors[3:])
    before = [t.detach().clone() for t in tensors]
    student, batches = build_student(network), drawn_steps(2)
    expected = match(student, *tensors, batches)
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(match(student, *tensors, batches), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert all(p.grad is None for p in network.parameters())
    images.backward(expected[1])


@pytest.mark.parametrize("unroll", ["adjoint", "plain"])
def test_a_student_that_diverges_gives_nan(unroll):
    network, (start, target, images, labels, _) = setting(dtype=torch.float32)
    too_far = torch.tensor(1e30)
    loss, to_images, to_step_size = match(
        build_student(network), start, target, images, labels, too_far, drawn_steps(3), unroll=unroll
    )
    assert not loss.isfinite()
    assert to_images.isnan().any()
    assert to_step_size.isnan()


@pytest.mark.parametrize("unroll", ["adjoint", "plain"])
def test_no_distance_gives_no_finite_loss(unroll):
    """To look would make a GPU wait; `Buffer.pair` has looked."""
    network, (start, _, *rest) = setting()
    loss, *_ = match(build_student(network), start, start.clone(), *rest, [Step()], unroll=unroll)
    assert not loss.isfinite()


def test_what_does_not_fit_is_refused():
    network, (start, target, *rest) = setting()
    student = build_student(network)
    with pytest.raises(InputError, match=f"start .* the network has {len(start)} parameters"):
        match(student, start[1:], target[1:], *rest, [Step()])
    drawn = augment.sample(ALL, 1, torch.Generator().manual_seed(0), SIZE)
    with pytest.raises(ValueError, match="Step 0 has 7 images and an augmentation for 1"):
        match(student, start, target, *rest, [Step(None, drawn)])


def test_the_global_generator_is_not_used():
    network, tensors = setting()
    before = torch.get_rng_state()
    match(build_student(network), *tensors, drawn_steps(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_more_images_than_a_chunk_are_alive_at_a_time():
    """Peak memory is one chunk's: no pass gets more images, and no graph outlives its pass."""
    network, tensors = setting()
    student = build_student(network)
    seen = []

    def pullback(theta, images, *rest):
        assert not theta.requires_grad
        assert not images.requires_grad
        seen.append(len(images))
        return student.pullback(theta, images, *rest)

    found = match(
        type(student)(student.num_parameters, False, student.gradient, pullback), *tensors, [Step(), Step()], chunk=3
    )
    assert seen == [2, 2, 3, 2, 2, 3]  # seven images in parts that differ by one at most
    assert all(t.grad_fn is None for t in found)


@pytest.mark.parametrize("fit", [0, 1, 4, 6, 1000])
def test_graphs_that_fit_into_the_memory_are_kept_and_change_no_bit(fit):
    network, tensors = setting("ConvNetD2W16", torch.float32)
    student, steps = build_student(network), drawn_steps(3)  # 2 + 2 + 3 parts
    expected = match(student, *tensors, steps, chunk=3)
    each = graph_bytes(student, tensors[0], tensors[2][:3], tensors[3][:3])
    pulled = []

    def pullback(theta, images, *rest):
        pulled.append(len(images))
        return student.pullback(theta, images, *rest)

    watched = dataclasses.replace(student, pullback=pullback)
    found = match(watched, *tensors, steps, chunk=3, memory=fit * each + each // 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(pulled) == max(0, 7 - fit)  # the last parts are kept


def test_the_weight_of_a_graph_is_what_it_saves():
    """Counted by hand for a network without norm: 4 images, 16 channels, 8x8 pixels, in double precision."""
    network, (theta, _, images, labels, _) = setting("ConvNetD1W16NN")
    weight = graph_bytes(build_student(network), theta, images[:4], labels[:4])
    features, pooled = 4 * 16 * 64 * 8, 4 * 16 * 16 * 8
    # What ReLU has made and its derivative, what pooling has made, and the gradients that go back through both.
    assert 2 * features + pooled < weight < 6 * features + 4 * pooled


def test_a_compiled_student_keeps_no_graphs():
    network, tensors = setting()
    student = build_student(network, lambda function: function)
    with pytest.raises(ValueError, match="compiled"):
        graph_bytes(student, tensors[0], tensors[2], tensors[3])
    found = match(student, *tensors, drawn_steps(3), chunk=3, memory=10**9)
    assert_close(found, match(build_student(network), *tensors, drawn_steps(3), chunk=3), 1e-8)


def test_bf16_keeps_the_direction():
    network, tensors = setting("ConvNetD1W16", torch.float32)
    student, batches = build_student(network), drawn_steps(3)
    expected = match(student, *tensors, batches)
    with precision("bf16", torch.device("cpu")):
        found = match(student, *tensors, batches, chunk=3)
    assert found[0] != expected[0]
    assert abs(found[0] - expected[0]) < 0.02 * expected[0]
    assert found[1].dtype == torch.float32
    assert torch.cosine_similarity(found[1].flatten(), expected[1].flatten(), dim=0) > 0.98


def test_compiled_functions_agree_and_are_not_compiled_anew():
    """By the eager backend: what is traced is checked here, and not what a compiler makes of it.

    Six steps and six strategies after the first step add no compilation, for the augmentation stays outside.
    """
    network, tensors = setting()
    torch.compiler.reset()
    student = build_student(network, partial(torch.compile, backend="aot_eager"))
    draws = torch.Generator().manual_seed(2)
    steps = [Step(None, augment.sample(s, IMAGES, draws, SIZE, one_strategy=True)) for s in augment.STRATEGIES]
    match(student, *tensors, [Step()])
    with torch.compiler.set_stance("fail_on_recompile"):
        found = match(student, *tensors, steps)
    assert_close(found, match(build_student(network), *tensors, steps), 1e-8)


@pytest.mark.cuda
def test_on_cuda_eager_and_compiled_equal_the_cpu():
    network, tensors = setting("ConvNetD2W16", torch.float32)
    batches = drawn_steps(3)
    expected = match(build_student(network), *tensors, batches)
    network, tensors = network.cuda(), [t.cuda() for t in tensors]
    batches = [Step(None if s.rows is None else s.rows.cuda(), s.augmentation.to("cuda")) for s in batches]
    for compiled in (None, torch.compile):
        with precision("fp32", torch.device("cuda")):  # convolutions there are in tf32 by default
            found = match(build_student(network, compiled), *tensors, batches, chunk=3)
        assert_close([t.cpu() for t in found], expected, 2e-3)
