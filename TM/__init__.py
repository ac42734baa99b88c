"""Trajectory matching (TM, also MTT): the scripts that train experts, distil and evaluate."""
