"""Training networks on a synthetic or a real set and testing them: protocols, evaluations, baselines."""
