"""One distillation: setup, loop, run folder, trackers, shares of several processes."""
