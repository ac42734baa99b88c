"""What a tracker is told; imported by the processes of test_track.py, too."""

import random

import numpy as np
import torch

CONFIG = {"lr_freq": 0.1, "dataset": "folder:a|b", "dsa": True, "chunk": None, "hardware": {"cores": 2}}
POINT = {
    "iteration": 10,
    "mean": 0.5,
    "std": 0.25,
    "n": 4,
    "networks": {"ConvNetD1": {"mean": 0.75, "std": 0.0, "n": 2}, "AlexNet": {"mean": 0.25, "std": 0.0, "n": 2}},
}
START = {"iteration": 0, "mean": 0.125, "std": 0.0, "n": 1}
SUMMARY = {"last": POINT, "seconds": 1.5}


def random_states():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
