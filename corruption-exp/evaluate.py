"""Tests networks trained on a synthetic set on corrupted or shifted test images.

Usage: `python corruption-exp/evaluate.py --synset FILE`. The implementation is in common/robustness/.
"""

import common.system.start  # noqa: F401 (before torch is loaded)

from pathlib import Path

from common.robustness.command import main

if __name__ == "__main__":
    main(Path(__file__).parent)
