"""How a dry run is printed: sections of lines, options by where they come from, and what is missing."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from common.costs.estimate import Estimate
from common.costs.forecast import Forecast
from common.system.devices import describe_hardware, free_memory, total_memory
from common.system.text import describe_bytes, hardware_in_words

_WIDTH = 110


def section(title: str, lines: Sequence[str]) -> str:
    """A title and its lines, indented and broken at the width of a page, but not within a path."""
    wrapper = textwrap.TextWrapper(_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"{title}:", *(f"  {part}" for line in lines for part in wrapper.wrap(line))])


def missing_section(missing: Sequence[str]) -> str:
    """The list of what is missing, an item a line: commands can be copied from it."""
    return "\n".join(["missing:", *(f"  - {each}" for each in missing)] if missing else ["missing:", "  nothing"])


def options_told(options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines that tell every option, those that somebody chose first, those at their defaults in one paragraph.

    options: the value of each with its source, as `options_with_sources` gives them.
    """
    sources = list(dict.fromkeys(str(each["source"]) for each in options.values()))
    # Flags are what was typed, recipes and rules what follows; defaults are the rest.
    sources.sort(key=lambda source: (source == "default", source != "flag"))
    lines = []
    for source in sources:
        of = {key: each for key, each in options.items() if each["source"] == source}
        told = [
            f"--{key} {shown(each['value'])}"
            + (f" (not {shown(each['instead_of'])})" if each.get("instead_of", each["value"]) != each["value"] else "")
            for key, each in of.items()
        ]
        lines.append(f"{source}: {', '.join(told)}")
    return lines


def cost_section(
    time: str, told: Forecast, needs: Estimate, device: torch.device, excess: tuple[str, bool] | None, of: str
) -> str:
    """What a command would take here. time: in words. excess: as `too_large` gives it. of: whose operations count."""
    lines = [
        f"time: about {time}",
        _memory_told(told.memory, needs, device),
        f"estimated from {told.speed.told}, and the operations of {of}",
    ]
    if excess is not None:
        lines.append(f"it will not fit: {excess[0]}")
    return section(f"cost on this machine ({hardware_in_words(describe_hardware(device))})", lines)


def _memory_told(peak: int, needs: Estimate, device: torch.device) -> str:
    """A line on the peak memory in bytes, what it is made of, and what the device has."""
    free, total = free_memory(device), total_memory(device)
    there = "" if free is None or total is None else f"; {describe_bytes(free)} of {describe_bytes(total)} are free"
    parts = ", ".join(f"{name} {describe_bytes(each)}" for name, each in needs.parts if each)
    return f"peak memory: about {describe_bytes(peak)} ({parts}; the rest are libraries){there}"


def shown(value: Any) -> str:
    """A value as it would be typed; "" for none."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
