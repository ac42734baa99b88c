"""The largest payload of a coded set that keeps to a budget."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from common.codec.payload import Contents, encode
from common.codec.planes import Planes
from common.codec.quantise import codes_of, fit_step

_TRIES = 8
_CLOSE = 0.998  # of the bytes allowed: nothing is left to gain


class Fitted(NamedTuple):
    """A payload with its parts (see `encode`), and the steps [C] and ideal bits of the codes [C] that led to it."""

    payload: bytes
    parts: dict[str, int]
    steps: Tensor
    bits: Tensor


def largest_payload(values: Tensor, planes: Planes, allowed: int, bits: Tensor, step: Tensor) -> Fitted | None:
    """The largest payload of coefficients [C, n, P] that was found with at most `allowed` bytes; None if there is none.

    What means and tables take is known only once they are coded, so the budget of the codes is corrected in a few
    tries. bits, step: of the codes of each class [C], where to begin.
    """
    best: Fitted | None = None
    for _ in range(_TRIES):
        step = fit_step(values, bits, step)
        means, codes = codes_of(values, step)
        contents = Contents("coded", planes, codes.to(torch.int16).cpu(), means=means.long().cpu(), steps=step.cpu())
        payload, parts = encode(contents)
        if len(payload) <= allowed and (best is None or len(payload) > len(best.payload)):
            best = Fitted(payload, parts, step, bits)
            if len(payload) > _CLOSE * allowed:
                break
        beside = 8 * len(payload) - parts["codes_bits"]
        left = max(0.5 * parts["codes_bits"], 8 * allowed * (1 + _CLOSE) / 2 - beside)
        bits = bits * min(2.0, left / max(1, parts["codes_bits"]))
    return best
