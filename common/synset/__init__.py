"""The synthetic set: what it stores, how its coefficients are selected, and every file format that holds one."""

from common.synset.synset import SynSet, SynSetArgs

__all__ = ["SynSet", "SynSetArgs"]
