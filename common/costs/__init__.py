"""Estimates the FLOPs, time and memory of a run before it starts."""
