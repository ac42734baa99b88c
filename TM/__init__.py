"""Trajectory matching."""
