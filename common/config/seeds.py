"""Lists of seeds on the command line, such as 0-4 or 0,2,5-7."""

from __future__ import annotations

import re

from common.system.errors import InputError

_MOST = 1000  # a longer list is a slip of the hand


def parse_seeds(text: str) -> list[int]:
    """The seeds that --seeds names, in its order: "0-2,7" gives [0, 1, 2, 7].

    Raises InputError for another text, an empty range, a seed that is named twice, or more than 1,000 seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        if found is None:
            raise InputError(f"--seeds '{text}' is no list of seeds: give one such as 0-4 or 0,2,5-7")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            raise InputError(
                f"--seeds {part.strip()} is an empty range, its first number is above its last: give {last}-{first}"
            )
        if last >= first + _MOST:
            raise InputError(f"--seeds {part.strip()} is a range of {last - first + 1:,}: give 1 to {_MOST:,} seeds")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text} names a seed twice: each makes one set")
    if len(seeds) > _MOST:
        raise InputError(f"--seeds names {len(seeds):,} seeds: give 1 to {_MOST:,}")
    return seeds
