"""The loops of gradient matching (DC): updates per iteration, and epochs of the network's training between two."""

from __future__ import annotations

from typing import Protocol

from common.config.checks import check_least
from common.system.errors import InputError

# ipc: (updates per iteration, epochs of the network's training between two updates), as in the authors' get_loops.
LOOPS = {
    1: (1, 1),
    2: (1, 1),
    10: (10, 50),
    11: (10, 50),
    20: (20, 25),
    30: (30, 20),
    40: (40, 15),
    50: (50, 10),
    51: (50, 10),
}


class HasLoops(Protocol):
    """The options of DC that decide its loops."""

    ipc: int
    outer_loop: int
    inner_loop: int


def loops(options: HasLoops) -> tuple[int, int]:
    """(outer_loop, inner_loop) of the options, where 0 stands for the authors' number for this ipc.

    Raises InputError for a negative number, and for 0 at an ipc for which the authors have no number.
    """
    for key in ("outer_loop", "inner_loop"):
        check_least(options, key, 0)
    if options.ipc not in LOOPS and not (options.outer_loop and options.inner_loop):
        known = ", ".join(map(str, LOOPS))
        raise InputError(
            f"DC has loops for ipc {known}, not {options.ipc}: give --outer_loop and --inner_loop, "
            "the updates per iteration and the epochs of the network between them"
        )
    outer, inner = LOOPS.get(options.ipc, (0, 0))
    return options.outer_loop or outer, options.inner_loop or inner
