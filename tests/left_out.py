"""What short runs spend most of their time on, left out of the runs that tests make in their own process.

The names of what is left out are said here alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from common.costs import forecast
from common.costs.speed import Speed
from common.report import pictures
from common.runs import output

_DRAWINGS = ("draw_images", "draw_voxels", "draw_masks", "draw_curves")
_WHOLE = [
    (forecast, "measure", forecast.measure),
    (output, "write_run_report", output.write_run_report),
    *((pictures, name, getattr(pictures, name)) for name in _DRAWINGS),
]


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """Runs in this process guess the speed of the machine, draw nothing, and leave an empty report.html."""
    patch.setattr(forecast, "measure", lambda *_, **__: Speed(1e9, "a guess"))
    patch.setattr(output, "write_run_report", lambda folder: (folder / "report.html").touch())
    leave_out_pictures(patch)


def leave_out_pictures(patch: pytest.MonkeyPatch, instead: Callable[..., object] = lambda path, *_: None) -> None:
    """Runs in this process draw nothing, or call `instead` with the path of the picture and what it shows."""
    for name in _DRAWINGS:
        patch.setattr(pictures, name, instead)


@contextlib.contextmanager
def whole_runs() -> Iterator[None]:
    """Inside, nothing is left out."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name, original in _WHOLE:
            patch.setattr(place, name, original)
        yield
