"""Amounts as people say them."""

from __future__ import annotations


def describe_seconds(seconds: float) -> str:
    """As people say it: "0.4 s", "35 s", "12 min", "2 h 40 min", "3 d 4 h"."""
    if round(seconds) < 60:
        return f"{_two_digits(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def describe_bytes(number: float) -> str:
    """In powers of 1000: "512 bytes", "35 MB", "1.2 GB"."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if round(number / 1000**power, 1) >= 1:
            return f"{_two_digits(number / 1000**power)} {unit}"
    return f"{number:.0f} bytes"


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) < 10 else f"{value:.0f}"
