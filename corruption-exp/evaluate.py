"""Test networks trained on a synthetic set on drifted images: `python corruption-exp/evaluate.py --synset FILE`.

The algorithm is in common/training/robustness.py, the test sets in common/datasets/corruptions.py.
"""

from pathlib import Path

from common.training.robustness import main

if __name__ == "__main__":
    main(Path(__file__).parent)
