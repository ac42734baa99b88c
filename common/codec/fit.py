"""The best payload of a coded set that keeps to a budget."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from common.codec.payload import Contents, TooDenseError, encode
from common.codec.planes import Planes
from common.codec.quantise import bits_of, codes_of, fit_step, step_range, values_of

_EVEN = 2  # tries that give each class its bits; after them only a common factor of the steps is looked for
_TRIES = 14
_CLOSE = 0.998  # of the bytes allowed: nothing is left to gain
_NARROW = 2e-3  # of log2 of the factor: no other payload lies between


class Fitted(NamedTuple):
    """A payload with its parts (see `encode`), and the steps [C] and the bits of `bits_of` [C] that led to it."""

    payload: bytes
    parts: dict[str, int]
    steps: Tensor
    bits: Tensor


def best_payload(values: Tensor, planes: Planes, allowed: int, bits: Tensor, step: Tensor) -> Fitted | None:
    """The payload of coefficients [C, n, P] with the least error that was found with at most `allowed` bytes.

    None if even that of the coarsest steps is larger. bits, step: of each class [C], where to begin. Raises InputError
    if a payload that fits would stand for more than may be decoded.
    """
    search = _Search(values, planes, allowed)
    length = math.inf
    for _ in range(_EVEN):
        step = fit_step(values, bits, step)
        length = search.length(step)
        if _CLOSE * allowed < length <= allowed:
            return search.best
        bits = bits * min(2.0, max(0.5, search.aim / length))
    search.along(step, length)
    if search.best is None and search.dense is not None:
        raise search.dense
    return search.best


class _Search:
    """Payloads that were tried, and the one of those that fit which has the least squared error."""

    def __init__(self, values: Tensor, planes: Planes, allowed: int) -> None:
        self._values, self._planes, self._allowed = values, planes, allowed
        self._range = step_range(values)
        self.aim = allowed * (1 + _CLOSE) / 2
        self.best: Fitted | None = None
        self._error = math.inf
        self.dense: TooDenseError | None = None

    def length(self, step: Tensor) -> float:
        """The bytes of the payload with the steps [C]; of one that is too small for what it stands for, too."""
        means, codes = codes_of(self._values, step)
        contents = Contents("coded", self._planes, codes.short().cpu(), means=means.short().cpu(), steps=step.cpu())
        try:
            payload, parts = encode(contents)
        except TooDenseError as refused:
            self.dense = refused
            return refused.length
        if len(payload) <= self._allowed:
            error = float((values_of(means, codes, step) - self._values).square().sum())
            if self.best is None or error < self._error:
                self.best, self._error = Fitted(payload, parts, step, bits_of(self._values, step)), error
        return float(len(payload))

    def _times(self, step: Tensor, factor: float) -> Tensor:
        """The steps [C] times 2^factor, within their range."""
        return torch.minimum(torch.maximum(step * 2**factor, self._range[0]), self._range[1])

    def along(self, step: Tensor, length: float) -> None:
        """Look for the common factor of the steps [C], whose payload has `length` bytes, that just fits.

        Means, tables and codes all shrink with the steps, so the whole payload decides, whatever it consists of. The
        next factor is where a straight line between the ends (log of factor and bytes) meets the aim, or the middle if
        the same end has just moved.
        """
        if not all(end.isfinite().all() for end in (*self._range, step)):
            return  # coefficients that are not finite: the run ends when it next looks at them
        finest, coarsest = (end / step for end in self._range)
        ends = [float(finest.log2().min()), float(coarsest.log2().max())]  # of log2 of the factor
        known: list[float | None] = [None, None]  # log2 of bytes / aim at the ends that have been tried
        at, stride, last = 0.0, 1.0, -1
        for _ in range(_TRIES):
            if _CLOSE * self._allowed < length <= self._allowed:
                return
            side = int(length <= self._allowed)
            if at == ends[1 - side]:
                return  # the finest steps fit, or the coarsest do not
            away = math.log2(length / self.aim)
            ends[side], known[side] = at, away
            low, high = known
            if low is None or high is None:
                away = min(stride * away, -_NARROW) if side else max(stride * away, _NARROW)
                at, stride = min(ends[1], max(ends[0], at + away)), 2 * stride
            elif ends[1] - ends[0] < _NARROW:
                return
            else:
                share = min(0.95, max(0.05, low / (low - high))) if side != last and low > 0 > high else 0.5
                at = ends[0] + share * (ends[1] - ends[0])
            last = side
            length = self.length(self._times(step, at))
