"""Folders, paths and locks of a disk that may refuse, each refusal told in one sentence."""
