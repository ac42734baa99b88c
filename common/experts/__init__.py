"""Trains expert networks for trajectory matching, stores their trajectories in folders and reads them."""
