"""Changes files at random: bits flipped, ends cut off, bytes put in, and values of their metadata replaced."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from tests.mutations import OTHERS, VALUES, changed, places, text_of
from tests.readers import with_metadata

JSON = ("config.json", "summary.json", "checksums.json", "manifest.json")


def flipped(content: bytes, draws: Random) -> bytes:
    """One bit of the content is another."""
    at = draws.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draws.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, draws: Random) -> bytes:
    """The beginning of the content."""
    return content[: draws.randrange(len(content))]


def grown(content: bytes, draws: Random) -> bytes:
    """The content with bytes put in."""
    at = draws.randrange(len(content))
    return content[:at] + draws.randbytes(draws.randrange(1, 40)) + content[at:]


def overwritten(content: bytes, draws: Random) -> bytes:
    """The content with other bytes in a place."""
    at = draws.randrange(len(content))
    some = draws.randbytes(draws.randrange(1, 40))
    return content[:at] + some + content[at + len(some) :]


def with_another_value(content: Any, draws: Random) -> str:
    """The content as JSON, with another value in one place."""
    loc = draws.choice(list(places(content)))
    return text_of(changed(content, loc, draws.choice([*VALUES, *OTHERS])))


def change(file: Path, draws: Random) -> None:
    """Change a file; in metadata as often as in bytes."""
    bytes_of = file.read_bytes()
    if draws.random() < 0.5 and file.name in JSON:
        file.write_text(with_another_value(json.loads(bytes_of), draws))
    elif draws.random() < 0.5 and file.name == "metrics.jsonl":
        lines = bytes_of.decode().splitlines()
        number = draws.randrange(len(lines))
        lines[number] = with_another_value(json.loads(lines[number]), draws)
        file.write_text("\n".join(lines))
    elif draws.random() < 0.5 and file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            metadata = json.loads(stored.metadata()["fred"])
        with_metadata(file, load_file(file), with_another_value(metadata, draws))
    else:
        file.write_bytes(draws.choice([flipped, flipped, cut, grown, overwritten])(bytes_of, draws))
