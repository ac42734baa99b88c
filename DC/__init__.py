"""Gradient matching (DC, DSA): the scripts that distil and evaluate."""
