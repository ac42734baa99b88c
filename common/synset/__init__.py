"""The synthetic set: what is stored, how its coefficients are selected, and every file that holds it."""

from common.synset.synset import SynSet, SynSetArgs

__all__ = ["SynSet", "SynSetArgs"]
