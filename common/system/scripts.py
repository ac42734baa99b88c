"""Which script an objective's name, as recipes and run folders have it, stands for."""

from __future__ import annotations

VOXELS = "3D-MNIST/distill.py"  # DM of voxels, filed under DM


def distill_script(objective: str) -> list[str]:
    """The script that distils, relative to the repository's root, and the flags that choose the objective there."""
    folder, _, of = objective.partition("/")
    return [f"{folder}/distill.py", *(["--objective", of] if of else [])]


def buffer_script(objective: str) -> str:
    """The script that trains the experts of an objective that needs some."""
    return f"{objective.partition('/')[0]}/buffer.py"
