"""Test networks trained on a synthetic set on shifted images: `python corruption-exp/evaluate.py --synset FILE`.

The algorithm and the test sets are in common/robustness/.
"""

from pathlib import Path

from common.robustness.command import main

if __name__ == "__main__":
    main(Path(__file__).parent)
