"""What runs draw and write for people to look at, left out by tests that make many runs: it takes longer than they do.

The names of what is left out are said here alone. Each function takes a pytest.MonkeyPatch, which undoes it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.report import pictures

_REPORT = "common.runs.output.write_run_report"
_DRAWINGS = ("draw_images", "draw_voxels", "draw_masks", "draw_curves")


def leave_out_report(patch: pytest.MonkeyPatch) -> None:
    """Runs in this process write no report.html."""
    patch.setattr(_REPORT, lambda folder: folder)


def leave_out_pictures(patch: pytest.MonkeyPatch, instead: Callable[..., object] = lambda path, *_: None) -> None:
    """Runs in this process draw nothing, or call `instead` with the path of the picture and what it shows."""
    for name in _DRAWINGS:
        patch.setattr(pictures, name, instead)
