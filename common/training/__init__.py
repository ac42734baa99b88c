"""Trains networks on synthetic or real images and tests them: protocols, evaluations and baselines."""
