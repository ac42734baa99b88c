"""PackedSet: a synthetic set that is stored in fewer bits than 32 a number, and is distilled through its rounding."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from common.codec.fit import Fitted, best_payload
from common.codec.payload import Contents, decode, encode, most_images, over_channels
from common.codec.planes import Planes
from common.codec.quantise import Rounding, StraightThrough, fit_step, int8_scales, rate_gradient
from common.synset import selection
from common.synset.base import LearnedSet, SetArgs
from common.system.devices import exact
from common.system.errors import InputError
from common.system.seeds import generator
from common.system.text import counted

Positions = Literal["shared", "joint"]
POSITIONS: tuple[str, ...] = get_args(Positions)

BITS_PER_NUMBER = 0.25
"""Of a coded set: n images per class are so many that a pixel value has a quarter of a bit (docs/log.md)."""
_REFRESH = 10  # updates between two searches for the step at which the codes fit the budget
_CODES = 0.9  # of the bits, before anything has been coded
_STEERED = 10  # 1 % too many bits make the gradient of the code length 10 % larger


@dataclass(unsafe_hash=True)
class PackedArgs(SetArgs):
    """The arguments of `PackedSet`; those that `SynSetArgs` has mean the same.

    storage: bf16, int8 or coded. bits_per_class: the file's payload takes at most C times as many. num_per_class: n;
    0 for as many as fit, or, coded, as many as have `BITS_PER_NUMBER`. colour, block: see `Planes`. kept: whether the
    k * ch positions of an image are the same k in each channel (shared) or chosen over all ch * d (joint).
    rate_weight: of a coded set, the size of the gradient of the code length beside that of the loss.
    """

    bits_per_class: int
    storage: str = "coded"
    colour: str = "rgb"
    block: int = 0
    kept: str = "joint"
    num_per_class: int = 0
    selection: str = "variance"
    selection_images: str = "init"
    seed: int = 0
    optimizer: str = "adam"
    rate_weight: float = 0.0


def coded_images(bits_per_class: int, channels: int, im_size: Sequence[int]) -> int:
    """How many images per class a coded set has by default."""
    return max(1, round(bits_per_class / (BITS_PER_NUMBER * channels * math.prod(im_size))))


def check_shared(colour: str | None, block: int) -> None:
    """Raise InputError for colours or blocks of which the channels cannot share their positions."""
    if colour == "opponent":
        raise InputError(
            "opponent colours need few coefficients beside those of the luminance, and shared positions give each the "
            "same: give --positions joint"
        )
    if block:
        raise InputError("shared positions are those of the whole image: give --positions joint, or leave out --block")


class PackedSet(LearnedSet):
    """A synthetic set of n images per class whose coefficients, in the units of the DCT, are rounded when decoded.

    The gradient passes the rounding unchanged (straight-through). `coefficients` float32 [C, n, K] are not rounded;
    `positions` int64 [C, K] says where they lie among the P of `Planes`: all P if the set is coded. A coded set has a
    step per class, which follows the coefficients so that the codes keep to the budget.

    Raises InputError if the budget is too small or another argument is invalid.
    """

    def __init__(self, args: PackedArgs) -> None:
        super().__init__(args)
        self.storage, self.bits_per_class, self.kept = args.storage, args.bits_per_class, args.kept
        self.planes = Planes(self.channel, self.im_size, args.colour, args.block)
        self._exact_on = exact(self.device)  # code lengths are float64
        self.coded = args.storage == "coded"
        self.selection = "energy" if args.kept == "joint" else args.selection
        self.selection_images = args.selection_images
        self._check_options()
        size = self.planes.size if self.coded else self.msz_per_channel * self.channel
        self._allocate(self._count(args.num_per_class, size), size)
        self.positions = torch.arange(size, device=self.device).expand(self.num_classes, size).contiguous()
        self._contents: Contents | None = None
        self._payload = b""
        self._parts: dict[str, int] = {}
        self._stored: PackedSet | None = None
        self.coding_seconds = 0.0
        """of the processor, for the payload that was made last; 0 before the first"""
        self._exact: Tensor | None = None  # the coefficients of a file, [C, n, K], in orthonormal units
        self._updates = 0
        self._step = torch.ones(self.num_classes, dtype=torch.float32, device=self.device)
        self._code_bits = torch.full(
            (self.num_classes,), _CODES * self.bits_per_class, dtype=torch.float32, device=self._exact_on
        )

    def _check_options(self) -> None:
        if self.kept not in POSITIONS:
            raise InputError(f"unknown positions '{self.kept}': choose shared or joint")
        if self.kept == "shared":
            check_shared(self.planes.colour, self.planes.block)
        if not self.coded:
            selection.check_rule(self.selection)
            selection.check_k(self.msz_per_channel, self.im_size)

    def _count(self, asked: int, kept: int) -> int:
        allowed = self.num_classes * self.bits_per_class // 8
        if self.coded:
            return asked or coded_images(self.bits_per_class, self.channel, self.im_size)
        most = most_images(self.storage, self.planes, self.num_classes, kept, self.kept == "joint", allowed)
        if most < max(1, asked):
            raise InputError(
                f"{self.bits_per_class:,} bits per class hold {counted(most, 'image')} of "
                f"{kept:,} {self.storage} coefficients each: give more bits, a smaller --msz_per_channel"
                f"{' or a smaller --n' if asked else ''}"
            )
        return asked or most

    # -- rounding ------------------------------------------------------------------------------------------------

    @property
    def units(self) -> Tensor:
        """What an orthonormal coefficient is multiplied by to give a learned one, [C, 1, K]."""
        return self.planes.scale_on(self.device)[self.positions][:, None]

    def _orthonormal(self) -> Tensor:
        return self.coefficients.detach() / self.units

    def _exactly(self) -> tuple[Tensor, Tensor]:
        """The orthonormal coefficients and the bits of the codes, where code lengths can be computed."""
        return self._orthonormal().to(self._exact_on), self._code_bits

    def _decode_classes(self, classes: slice, copy: bool) -> Tensor:
        coefficients = self.coefficients.detach() if copy else self.coefficients
        return self._images(coefficients[classes], classes)

    def _decode_rows(self, rows: Tensor, copy: bool) -> Tensor:
        coefficients = self.coefficients.detach() if copy else self.coefficients
        images = coefficients.flatten(0, 1)[rows][:, None]
        return self._images(images, rows // self.num_per_class, rows)[:, 0]

    def _images(self, coefficients: Tensor, groups: slice | Tensor, rows: Tensor | None = None) -> Tensor:
        """Decode coefficients [G, m, K] of the classes `groups`, rounded, to [G, m, ch, *im_size]."""
        values = coefficients / self.units[groups]
        with torch.no_grad():
            if self._exact is None:
                rounded = self._rounded(values, groups)
            else:
                rounded = self._exact[groups] if rows is None else self._exact.flatten(0, 1)[rows][:, None]
        values = StraightThrough.apply(values, rounded)
        if self.coded:
            return self.planes.inverse(values)
        dense = values.new_zeros(*values.shape[:2], self.planes.size)
        return self.planes.inverse(dense.scatter(2, self.positions[groups][:, None].expand(values.shape), values))

    def _rounded(self, values: Tensor, groups: slice | Tensor) -> Tensor:
        """Values [G, m, K] of the classes `groups` as they would be stored."""
        if self.storage == "bf16":
            return values.bfloat16().float()
        # Scales, means and limits are those of whole classes, and of no more classes than are asked for.
        classes, within = (groups, slice(None)) if isinstance(groups, slice) else (slice(None), groups)
        whole = self.coefficients.detach()[classes] / self.units[classes]
        if self.storage == "int8":
            scales = int8_scales(whole).float()[within][:, None]
            return (values / scales).round() * scales
        return Rounding.of(whole, self._step[classes]).of_classes(within).round(values)

    def optim_step(self) -> None:
        """Take one step of the optimiser; every few, a coded set also looks for the step that keeps to the budget."""
        if self.args.rate_weight:
            self._add_rate()
        super().optim_step()
        self._changed()
        self._updates += 1
        if self.coded and self._updates % _REFRESH == 0:
            self._step = fit_step(*self._exactly(), self._step.to(self._exact_on)).to(self.device)

    @torch.no_grad()
    def _add_rate(self) -> None:
        """Add the gradient of the code length, per class `rate_weight` times as large as that of the loss.

        It is larger still while the codes have outgrown the budget since the step was last searched, and smaller while
        they have shrunk: the weight is steered toward codes that keep to the budget with the step as it is.
        """
        assert self.coefficients.grad is not None
        values, code_bits = self._exactly()
        toward, bits = rate_gradient(values, self._step.to(self._exact_on))
        toward = toward.to(self.device) / self.units
        sizes = [each.square().mean(dim=(1, 2), keepdim=True).sqrt() for each in (self.coefficients.grad, toward)]
        steered = (bits / code_bits).clamp(0.5, 2.0).float().to(self.device)[:, None, None] ** _STEERED
        self.coefficients.grad += self.args.rate_weight * steered * sizes[0] / sizes[1].clamp_min(1e-30) * toward

    def _changed(self) -> None:
        self._stored, self._exact, self._payload, self._contents = None, None, b"", None

    # -- the initial set -----------------------------------------------------------------------------------------

    def _start(self, images: Tensor) -> None:
        self._changed()
        dense = self.planes.forward(images)  # [C, n, P]
        if not self.coded:
            self.positions = self._choose(dense)
            dense = dense.gather(2, self.positions[:, None].expand(self.coefficients.shape))
        with torch.no_grad():
            self.coefficients.copy_(dense * self.units)
        self._filled = True
        if self.coded:
            fitted = self._fit(fit_step(dense.to(self._exact_on), self._code_bits))
            self._step, self._code_bits = fitted.steps.to(self.device), fitted.bits

    def _choose(self, dense: Tensor) -> Tensor:
        """The positions int64 [C, K]: those of the largest energy over all P, or those of a rule for each channel."""
        if self.kept == "joint":
            energy = dense.to(self._exact_on).double().square().mean(dim=1)  # [C, P]
            order = energy.argsort(dim=1, descending=True, stable=True)
            return order[:, : self.coefficients.shape[2]].sort(dim=1).values.to(self.device)
        assert self._survey is not None
        draws = generator(self.seed, "selection")
        chosen = selection.select(self.selection, self._survey, self.msz_per_channel, self.transform, draws)
        return over_channels(chosen, self.planes)

    # -- the file ------------------------------------------------------------------------------------------------

    @property
    def payload(self) -> bytes:
        """What the file stores: everything that a decoder needs. Raises InputError if the budget is too small."""
        self.check_filled()
        return self.stored()._payload

    @property
    def contents(self) -> Contents:
        """What the payload says."""
        contents = self.stored()._contents
        assert contents is not None
        return contents

    @property
    def payload_parts(self) -> dict[str, int]:
        """The bytes of the payload by what they say, and the bits of its coded part."""
        return self.stored()._parts

    def stored(self) -> PackedSet:
        """The set that is decoded from the payload of this one, or this one itself if it was decoded from a payload."""
        if self._payload:
            return self
        if self._stored is None:
            begun = time.process_time()
            if self.coded:
                payload, parts = self._fit(self._step)[:2]
            else:
                payload, parts = encode(self._kept_contents())
            self._stored = PackedSet(self.args)
            self._stored.load_payload(payload)
            self._stored._parts = parts
            self.coding_seconds = time.process_time() - begun
        return self._stored

    def load_payload(self, payload: bytes, contents: Contents | None = None) -> None:
        """Take what a payload says. Raises InputError if it is damaged, or of other shapes than this set.

        contents: what `decode` said of it, if it has been called already.
        """
        contents = contents or decode(payload)
        shape = (self.num_classes, self.num_per_class, self.coefficients.shape[2])
        found, kept = tuple(contents.values.shape), "joint" if contents.joint else "shared"
        if (contents.kind, contents.planes, found) != (self.storage, self.planes, shape) or (
            not self.coded and kept != self.kept
        ):
            raise InputError("the payload is of other shapes than the metadata say: the file is damaged, copy it again")
        self._changed()
        if contents.positions is not None:
            self.positions = contents.positions.to(self.device)
        if contents.steps is not None:
            self._step = contents.steps.to(self.device)
        self._exact = contents.coefficients.to(self.device)
        with torch.no_grad():
            self.coefficients.copy_(self._exact * self.units)
        self._payload, self._contents, self._filled = payload, contents, True

    def _kept_contents(self) -> Contents:
        values = self._orthonormal()
        positions, joint = self.positions.cpu(), self.kept == "joint"
        if self.storage == "bf16":
            return Contents("bf16", self.planes, values.bfloat16().cpu(), positions, joint)
        scales = int8_scales(values)
        codes = (values / scales.float()[:, None]).round().to(torch.int8)
        return Contents("int8", self.planes, codes.cpu(), positions, joint, scales.cpu())

    def _fit(self, step: Tensor) -> Fitted:
        """The best payload that keeps to the budget. step: where to begin. Raises InputError if there is none."""
        allowed = self.num_classes * self.bits_per_class // 8
        values, code_bits = self._exactly()
        found = best_payload(values, self.planes, allowed, code_bits, step.to(self._exact_on))
        if found is None:
            raise InputError(
                f"{self.bits_per_class:,} bits per class do not hold {counted(self.num_per_class, 'image')}, "
                "however coarsely rounded: give more bits, a smaller --n does not help"
            )
        return found

    # -- contents ------------------------------------------------------------------------------------------------

    @property
    def mask(self) -> Tensor:
        """The positions that some image of the class uses, in some colour, as a boolean [C, *im_size].

        It is built at each access. Of blocks, each has its own positions where it lies.
        """
        self.check_filled()
        used = torch.zeros(self.num_classes, self.planes.size, dtype=torch.bool, device=self.device)
        if self.coded:
            contents = self.contents
            assert contents.means is not None
            used |= (contents.values.ne(0).any(dim=1) | contents.means.ne(0)).to(self.device)
        else:
            used.scatter_(1, self.positions, True)
        return self.planes.laid_out(used).any(dim=1)

    def numbers(self) -> int:
        """The numbers that are kept: coefficients that are stored, or codes and means other than zero."""
        if not self.coded:
            return self.coefficients.numel()
        contents = self.contents
        assert contents.means is not None
        return int(contents.values.count_nonzero() + contents.means.count_nonzero())

    def budget(self) -> dict[str, int]:
        """Return counts and bytes of what the set stores, and the number of images that it decodes to.

        coefficient_bytes: the paper's count, 4 bytes for each number that is kept. payload_bytes: everything that a
        decoder needs, of at most allowed_bytes.
        """
        numbers = self.numbers()
        return {
            "ipc": self.ipc,
            "images_per_class": self.num_per_class,
            "images": len(self.labels),
            "coefficients": numbers,
            "coefficient_bytes": 4 * numbers,
            "payload_bytes": len(self.payload),
            "allowed_bytes": self.num_classes * self.bits_per_class // 8,
            "bits_per_class": self.bits_per_class,
            "pixels_of_budget": self.num_classes * self.bits_per_class // 32,
        }

    def describe_budget(self) -> str:
        """Return the budget as one line of text."""
        b = self.budget()
        return (
            f"{self.num_classes} classes x {counted(b['images_per_class'], 'image')} as {self.storage} "
            f"({self.describe_kept()}): {b['payload_bytes']:,} bytes for a decoder of {b['allowed_bytes']:,} allowed, "
            f"{self.bits_per_class:,} bits per class; {b['coefficients']:,} numbers, {b['coefficient_bytes']:,} bytes "
            "by the paper's count, 4 bytes each"
        )

    def describe_kept(self, by_rule: bool = False) -> str:
        """Say what an image keeps, such as "192 of 3,072 DCT coefficients in opponent colours"; by_rule: and why."""
        blocks = f" of blocks of {self.planes.block}" if self.planes.block else ""
        colours = f" in {self.planes.colour} colours" if self.channel == 3 else ""
        if self.coded:
            used = "; black: coded in some image" if by_rule else ""
            return f"DCT coefficients{blocks}{colours}, entropy-coded{used}"
        where = "chosen for all channels at once" if self.kept == "joint" else "the same in each channel"
        kept = self.coefficients.shape[2]
        rule = f", by {self.selection}" if by_rule else ""
        return f"{kept:,} of {self.planes.size:,} DCT coefficients{blocks}{colours}, {where}{rule}"

    def file_contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the payload, and how it was made."""
        stored = {
            "kind": self.storage,
            "bits_per_class": self.bits_per_class,
            "images_per_class": self.num_per_class,
            "colour": self.planes.colour,
            "block": self.planes.block,
            "positions": self.kept,
            "numbers": self.numbers(),
            "bytes": len(self.payload),
        }
        return {"payload": torch.frombuffer(bytearray(self.payload), dtype=torch.uint8)}, {"storage": stored}

    def shared_parts(self) -> list[Tensor]:
        """Tensors on which all processes of a job have to agree before the first update."""
        return [self.positions, self.coefficients, self._step, self._code_bits]

    def state_dict(self) -> dict[str, Any]:
        """Return what `LearnedSet.state_dict` does, and of a coded set also the steps and when they were chosen."""
        rounding = {"step": self._step.clone(), "code_bits": self._code_bits.clone(), "updates": self._updates}
        return super().state_dict() | rounding

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`; "optimizer" may be missing. Raises InputError if a shape differs."""
        super().load_state_dict(state)
        self._changed()
        self._step, self._code_bits = state["step"].to(self.device), state["code_bits"].to(self._exact_on)
        self._updates = state["updates"]

    def _position_limit(self) -> int:
        return self.planes.size

    def _too_few(self, found: int) -> str:
        return f"{counted(found, 'image')}, and the set is to have {self.num_per_class} per class: give a smaller --n"
