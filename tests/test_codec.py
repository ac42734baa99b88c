import itertools
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from common import frequency
from common.codec import payload, quantise, side, tables
from common.codec.coder import Reader, Writer
from common.codec.fit import best_payload
from common.codec.planes import Planes
from common.codec.positions import positions_bytes, read_positions
from common.codec.rate import Sums, shortest
from common.system.errors import InputError
from tests.conftest import ROOT

LAYOUTS = [
    Planes(3, (16, 16)),
    Planes(3, (16, 24), "opponent", 8),
    Planes(3, (8, 8), "opponent"),
    Planes(1, (8, 8)),
    Planes(1, (32, 16), block=16),
    Planes(1, (4, 6, 8)),
    Planes(2, (8, 8, 16), block=8),
]


@pytest.mark.parametrize("planes", LAYOUTS, ids=str)
def test_planes_are_orthonormal_and_are_undone(planes, draws):
    images = torch.randn(2, 3, planes.channels, *planes.im_size, generator=draws)
    coefficients = planes.forward(images)
    assert coefficients.shape == (2, 3, planes.size)
    torch.testing.assert_close(coefficients.square().sum(-1), images.square().flatten(2).sum(-1))
    torch.testing.assert_close(planes.inverse(coefficients), images, atol=1e-5, rtol=1e-5)
    assert sorted(planes.scan.tolist()) == list(range(planes.size))
    assert torch.equal(planes.laid_out(coefficients).flatten().sort().values, coefficients.flatten().sort().values)


def test_whole_images_have_the_coefficients_of_the_transform(draws):
    planes, images = Planes(3, (8, 16)), torch.randn(4, 3, 8, 16, generator=draws)
    ours = planes.forward(images) * planes.scale
    torch.testing.assert_close(ours, frequency.dct(images, 2).flatten(1), atol=1e-4, rtol=1e-4)


def test_blocks_and_colours_lie_where_the_layout_says(draws):
    images = torch.randn(3, 16, 24, generator=draws)
    found = Planes(3, (16, 24), "opponent", 8).forward(images).view(3, 64, 2, 3)
    luminance = images.sum(0) / math.sqrt(3)
    block = frequency.dct(luminance[8:, 16:], 2).flatten() / frequency.orthonormal_scale((8, 8)).flatten()
    torch.testing.assert_close(found[0, :, 1, 2], block.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, (8, 8), "opponent"), "red, green and blue"),
        ((3, (12, 8), "rgb", 8), "blocks of 8 do not tile images of 12x8"),
        ((3, (8, 8), "rgb", 7), "unknown block"),
        ((3, (8, 8), "ycc"), "unknown colour"),
    ],
)
def test_impossible_layouts_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Planes(*arguments)


def test_tables_are_whole_numbers_that_add_up():
    told = tables.lengths()
    for i in range(1, tables.TABLES):
        counts = tables.counts(i)
        assert counts.dtype == np.int64
        assert counts.sum() == 1 << 24
        assert counts.min() >= 1
        assert np.array_equal(counts, counts[::-1])
        assert told.zero[i] == -math.log2(counts[len(counts) // 2] / (1 << 24))
    assert told.support[-1] == tables.LARGEST
    assert tables.counts(17)[:16].tolist()[-5:] == [37726, 166518, 734976, 3244032, 8388608]
    assert tables.counts(1)[15] == 16711914


def test_the_coder_is_undone_and_as_short_as_the_model_says():
    draws = np.random.default_rng(0)
    under = draws.integers(0, tables.TABLES, 20_000)
    codes = np.zeros(len(under), dtype=np.int64)
    for i in range(1, tables.TABLES):
        counts, rows = tables.counts(i), under == i
        codes[rows] = draws.choice(len(counts), rows.sum(), p=counts / counts.sum()) - len(counts) // 2
    writer = Writer()
    writer.put(codes, under)
    assert 32 * len(writer.words) == pytest.approx(tables.exact_bits(codes, under), rel=1e-3)
    reader = Reader(writer.words)
    assert np.array_equal(reader.take(under)[:, 0], codes)
    reader.check_end()
    with pytest.raises(InputError, match="goes on after its last code"):
        Reader(np.concatenate([writer.words, writer.words])).check_end()


def test_the_shortest_table_is_that_of_all_tables_tried(draws):
    codes = (torch.randn(3, 50, 20, generator=draws) * torch.logspace(-2, 2, 20)).round()
    bits, chosen = shortest(Sums.of(codes, 1))
    for c, p in itertools.product(range(3), range(20)):
        column = codes[c, :, p].long().numpy()
        tried = {
            i: tables.exact_bits(column, np.full(50, i))
            for i in range(1, tables.TABLES)
            if np.abs(column).max() <= len(tables.counts(i)) // 2
        }
        if not column.any():
            assert (bits[c, p], chosen[c, p]) == (0, 0)
        else:
            assert tried[int(chosen[c, p])] <= min(tried.values()) * 1.01
            assert float(bits[c, p]) == pytest.approx(tried[int(chosen[c, p])], rel=0.01)


def some(planes, classes=3, count=20, seed=0):
    """Coefficients [C, n, P] that fall off with the frequency, as those of images do."""
    draws = torch.Generator().manual_seed(seed)
    fall = torch.ones(planes.size)
    fall[planes.scan] = 1 / (1 + torch.arange(planes.size) % planes.d).float()
    return (torch.randn(classes, count, planes.size, generator=draws) + 0.5) * fall


def coded(planes, bits, **changes):
    values = some(planes, **changes)
    step = quantise.fit_step(values, torch.full((len(values),), float(bits)))
    means, codes = quantise.codes_of(values, step)
    return payload.Contents("coded", planes, codes.to(torch.int16), means=means.short(), steps=step), values


@pytest.mark.parametrize("spread", [0.3, 0.5, 1.0, 4.0, 50.0])
def test_at_a_limit_both_codes_cost_the_same(spread):
    """Squared error plus the worth of the code length, for the shares of a Laplace distribution."""
    limits = quantise.Limits.of(torch.tensor([[spread]], dtype=torch.float64))
    rho, theta = math.exp(-0.65 / spread), math.exp(-1 / spread)

    def cost(size, code):
        share = 1 - rho if code == 0 else rho / 2 * (1 - theta) * theta ** (code - 1)
        return (size - code) ** 2 - quantise.BIT * math.log2(share)

    first, further = float(limits.first), float(limits.further)
    assert 0.5 < min(first, further) < max(first, further) < 0.95
    assert cost(first, 0) == pytest.approx(cost(first, 1))
    for code in (2, 5):
        assert cost(code - 1 + further, code - 1) == pytest.approx(cost(code - 1 + further, code))


def test_rounding_changes_at_the_limits_and_gives_whole_steps():
    rounding = quantise.Rounding(
        torch.tensor([2.0]), torch.tensor([[3.0]]), torch.tensor([[6.0]]),
        quantise.Limits(torch.tensor([[0.8]]), torch.tensor([[0.6]])),
    )  # fmt: skip
    far = torch.tensor([0.0, 1.59, 1.61, -1.61, 3.19, 3.21, -7.0, 7.3])
    codes = rounding.codes((6 + far)[None, :, None]).flatten()
    assert codes.tolist() == [0, 0, 1, -1, 1, 2, -3, 4]
    assert rounding.round((6 + far)[None, :, None]).flatten().tolist() == (6 + 2 * codes).tolist()


def test_rare_codes_are_zero_sooner_and_what_never_leaves_zero_has_limits():
    limits = quantise.Limits.of(torch.tensor([[0.0, 1e-9, 0.05, 0.2, 1.0, 1e4, float("inf")]]))
    for part in limits:
        assert part.isfinite().all()
        assert (part.diff() <= 1e-4).all()  # rounding, where the limits no longer change
    assert limits.first[0, 0] == 1


def test_limits_by_rate_have_the_lesser_error_at_equal_bits():
    values = some(Planes(3, (16, 16), "opponent"), count=100)
    bits = torch.full((3,), 20_000.0)
    errors = {}
    for name, limits in {"by rate": None, "the same everywhere": (0.65, 0.65), "halves": (0.5, 0.5)}.items():
        with pytest.MonkeyPatch.context() as patch:
            if limits is not None:
                told = classmethod(lambda cls, spread, to=limits: cls(*(torch.full_like(spread, each) for each in to)))
                patch.setattr(quantise.Limits, "of", told)
            step = quantise.fit_step(values, bits)
            means, codes = quantise.codes_of(values, step)
            assert (quantise.bits_of(values, step) <= bits).all()
            errors[name] = (quantise.values_of(means, codes, step) - values).square().mean().item()
    assert errors["by rate"] < 0.98 * errors["the same everywhere"] < 0.98 * errors["halves"]


@pytest.mark.parametrize("planes", LAYOUTS, ids=str)
def test_the_step_fits_the_bits_and_decoding_gives_the_rounded_values(planes):
    contents, values = coded(planes, 2000)
    assert (quantise.bits_of(values, contents.steps) <= 2000).all()
    assert (quantise.bits_of(values, contents.steps * 0.97) > 1800).all()
    data, parts = payload.encode(contents)
    assert len(data) == parts["head"] + parts["steps"] + parts["coded"]
    back = payload.decode(data)
    assert torch.equal(back.values, contents.values)
    assert torch.equal(back.means, contents.means)
    assert torch.equal(back.steps, contents.steps)
    assert back.planes == planes
    close = (back.coefficients - values).abs() <= 1.0001 * contents.steps[:, None, None]
    assert close.all()


def test_a_warm_start_finds_the_same_step():
    values = some(LAYOUTS[0])
    bits = torch.full((3,), 3000.0)
    cold = quantise.fit_step(values, bits)
    for start in (cold, cold * 1.05, cold * 3, cold / 5):
        torch.testing.assert_close(quantise.fit_step(values, bits, start), cold, rtol=5e-3, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coefficients_that_are_not_finite_are_left_to_the_run(value):
    values, bits = some(LAYOUTS[3]), torch.full((3,), 500.0)
    start = quantise.fit_step(values, bits)
    values[1, 2, 3] = value
    step = quantise.fit_step(values, bits, start)
    assert step[[0, 2]].isfinite().all()


def test_the_file_is_as_long_as_the_model_says():
    """Beside codes and means there are tables and a word to end with; the codes are within 1 % of the ideal."""
    contents, values = coded(Planes(3, (32, 32), "opponent"), 60_000, classes=4, count=60)
    parts = payload.encode(contents)[1]
    ideal = quantise.bits_of(values, contents.steps).sum().item()
    assert ideal <= (parts["codes_bits"] + parts["means_bits"]) * 1.001
    words, told = side.write(side.Stream(contents.values.numpy(), contents.means.numpy()), contents.planes.scan.numpy())
    assert 32 * len(words) == pytest.approx(sum(told), abs=64)
    under = side.chosen_tables(contents.values)
    exact = tables.exact_bits(contents.values.numpy().transpose(0, 2, 1).ravel(), under.ravel().repeat(60))
    assert parts["codes_bits"] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("count", "bits"), [(1, 20_000), (2, 2000), (2, 8000), (4, 2000), (4, 8000), (20, 8000)])
def test_the_budget_is_used_however_few_the_images(count, bits):
    planes = Planes(3, (32, 32), "opponent")
    values, start = some(planes, classes=4, count=count), torch.full((4,), 0.9 * bits)
    allowed = 4 * bits // 8
    found = best_payload(values, planes, allowed, start, quantise.fit_step(values, start))
    # One image is all mean, and a larger mean needs another table for every position, so the length jumps.
    assert (0.97 if count > 1 else 0.85) * allowed <= len(found.payload) <= allowed
    assert quantise.bits_of(values, found.steps).tolist() == found.bits.tolist()


@pytest.mark.parametrize("count", [1, 3])
def test_only_a_budget_below_the_coarsest_payload_is_refused(count):
    values = some(LAYOUTS[3], count=count)
    means, codes = quantise.codes_of(values, quantise.step_range(values)[1])
    assert not means.any()
    assert not codes.any()
    contents = payload.Contents("coded", LAYOUTS[3], codes.short(), means=means.short(), steps=torch.ones(3))
    least, bits = len(payload.encode(contents)[0]), torch.ones(3)
    for allowed in (least, least + 4, least + 40):
        assert len(best_payload(values, LAYOUTS[3], allowed, bits, torch.ones(3)).payload) <= allowed
    assert best_payload(values, LAYOUTS[3], least - 1, bits, torch.ones(3)) is None


def test_the_finest_steps_are_all_that_a_large_budget_needs():
    values, bits = some(LAYOUTS[3], count=1), torch.full((3,), 1e6)
    found = best_payload(values, LAYOUTS[3], 10**6, bits, torch.ones(3))
    torch.testing.assert_close(found.steps, quantise.step_range(values)[0], rtol=0.3, atol=0)


def test_the_gradient_of_the_rate_is_that_of_straight_lines_between_lengths():
    values, step = some(Planes(1, (4, 4)), classes=1, count=30), torch.tensor([0.3])
    gradient, bits = quantise.rate_gradient(values, step)
    assert float(bits) == pytest.approx(float(quantise.bits_of(values, step)))
    codes = quantise.codes_of(values, step)[1]
    under, told = shortest(Sums.of(codes, 1))[1], tables.lengths()
    for i, p in itertools.product(range(30), range(16)):
        t, far = int(under[0, p]), values[0, i, p] - quantise.means_of(values, step)[1][0, p]
        slope = told.one[t] - told.zero[t] if abs(far) < 0.3 else told.more[t]
        assert float(gradient[0, i, p]) == pytest.approx(float(slope * far.sign() / 0.3), rel=1e-4)


@pytest.mark.parametrize(("limit", "count"), [(64, 16), (3072, 184), (3072, 2), (70_000, 3), (16, 16)])
def test_positions_take_the_smaller_form(limit, count):
    draws = np.random.default_rng(count)
    positions = np.sort(np.stack([draws.permutation(limit)[:count] for _ in range(4)]), axis=1)
    data = positions_bytes(positions, True, limit)
    assert len(data) <= len(positions_bytes(None, True, limit, 4))
    widest = int((np.diff(positions, axis=1, prepend=-1) - 1).max())
    width = 1 if widest < 256 else 2 if widest < 65_536 else 4
    assert len(data) == 6 + min(4 * -(-limit // 8), 4 * count * width)
    planes = Planes(1, (limit // 2, 2))
    found, joint, rest = read_positions(data + b"rest", 4, planes)
    assert np.array_equal(found, positions)
    assert joint
    assert rest == b"rest"
    for length in range(len(data)):
        with pytest.raises(InputError, match="positions"):
            read_positions(data[:length], 4, planes)


def damaged(data, draws):
    """Payloads that nobody wrote: cut, longer, of other numbers."""
    yield from (data[:length] for length in (*range(0, 40), len(data) - 1, len(data) - 4, len(data) // 2))
    yield data + bytes(8)
    for _ in range(300):
        other = bytearray(data)
        for place in draws.integers(0, len(data), draws.integers(1, 4)):
            other[place] = draws.integers(0, 256)
        yield bytes(other)
    yield from (bytes(draws.integers(0, 256, 200, dtype=np.uint8)) for _ in range(50))


@pytest.mark.parametrize("kind", payload.KINDS)
def test_hostile_payloads_are_a_sentence_or_a_set(kind):
    planes = Planes(3, (8, 8))
    contents, values = coded(planes, 500)
    if kind != "coded":
        positions = torch.arange(0, 40, 2).expand(3, 20)
        kept = values[:, :, :20]
        stored = kept.bfloat16() if kind == "bf16" else (10 * kept).to(torch.int8)
        scales = torch.ones(3, 20).bfloat16() if kind == "int8" else None
        contents = payload.Contents(kind, planes, stored, positions, True, scales)
    data = payload.encode(contents)[0]
    refused = 0
    for each in damaged(data, np.random.default_rng(1)):
        try:
            found = payload.decode(each)
        except InputError:
            refused += 1
        else:
            assert found.values.shape[:2].numel() * found.planes.size <= 1024 * len(each)
            assert found.coefficients.isfinite().all()
    assert refused > 50


def test_a_small_file_cannot_stand_for_much():
    head = (
        bytes([1, 2, 0, 0, 2, 3]) + (10).to_bytes(2, "little") + (4_000_000).to_bytes(4, "little") + bytes([32, 0] * 2)
    )
    with pytest.raises(InputError, match="more than 1,024 coefficients for each byte"):
        payload.decode(head + bytes(4000))
    with pytest.raises(InputError, match="damaged"):
        payload.decode(head[:12] + bytes([255, 255, 1, 0]) + bytes(40_000))
    with pytest.raises(InputError, match="version 9"):
        payload.decode(bytes([9]) + head[1:])


def test_the_vector_of_the_format_is_what_it_says():
    text = (ROOT / "docs/format.md").read_text(encoding="utf-8")
    data = bytes.fromhex("".join(re.findall(r"^    ([0-9a-f]{64})$", text, re.MULTILINE)))
    codes = torch.tensor([[[3, -1, 0, 0], [2, 0, 1, 0]], [[-4, 0, 0, 0], [5, 2, 0, -1]]], dtype=torch.int16)
    means, steps = torch.tensor([[1, 0, 0, 0], [-2, 0, 1, 0]], dtype=torch.int16), torch.tensor([0.5, 0.25])
    contents = payload.Contents("coded", Planes(1, (2, 2)), codes, means=means, steps=steps)
    assert payload.encode(contents)[0] == data
    found = payload.decode(data)
    assert torch.equal(found.values, codes)
    assert found.coefficients[1, 0].tolist() == [-1.5, 0, 0.25, 0]


MEMORY = """
import resource, sys, torch
from common.codec.payload import decode
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(data)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("classes", [2, 500])
def test_decoding_takes_little_more_memory_than_the_set(tmp_path, classes):
    planes = Planes(1, (32, 32))
    codes, means = np.zeros((classes, 8, planes.size), np.int16), np.zeros((classes, planes.size), np.int16)
    codes[:, 0] = np.random.default_rng(0).integers(-1, 2, planes.size)
    contents = payload.Contents(
        "coded", planes, torch.from_numpy(codes), means=torch.from_numpy(means), steps=torch.ones(classes)
    )
    (tmp_path / "payload").write_bytes(payload.encode(contents)[0])
    told = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "payload"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(told.stdout) < 6 * 4 * classes * 8 * planes.size + 5e7


def test_more_than_the_largest_set_is_refused_before_anything_is_made():
    head = bytes([1, 2, 0, 0, 2, 3]) + (10).to_bytes(2, "little") + (80_000).to_bytes(4, "little") + bytes([32, 0] * 2)
    with pytest.raises(InputError, match="more than 2,147,483,648 coefficients"):
        payload.decode(head + bytes(3_000_000))
