"""FreD: dataset distillation in the frequency domain. See the README for the house at a glance."""

from common.datasets import load_dataset
from common.networks import build_network
from common.synset.synset import SynSet

__all__ = ["SynSet", "build_network", "load_dataset"]
