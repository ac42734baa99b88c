"""Flips single bits of a file, as a worn disk or a bad cable does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.system.errors import InputError


def assert_noticed(path: Path, read: Callable[[], Any], count: int) -> None:
    """Flip about `count` bits of a file, evenly spread, one at a time, and restore the file.

    With each of them `read` must raise an InputError of one line, or return exactly what it returned before.
    """
    whole, before, told = path.read_bytes(), read(), set[str]()
    step = max(1, 8 * len(whole) // count) | 1  # odd, so that every bit of a byte has its turn
    for bit in range(0, 8 * len(whole), step):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            found = read()
        except InputError as error:
            told.add(str(error))
        else:
            assert same(before, found), f"bit {bit % 8} of byte {bit // 8} changes what is read"
    path.write_bytes(whole)
    assert told
    assert all("\n" not in each and str(path.parent) in each for each in told)
    assert same(before, read())


def same(a: Any, b: Any) -> bool:
    """Whether two results are of the same types and equal in every value."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
