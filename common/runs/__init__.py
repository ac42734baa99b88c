"""One distillation: its setup, loop, run folder and trackers, and how several processes share it."""
