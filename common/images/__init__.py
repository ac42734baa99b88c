"""Images as numbers: raw pixels, normalised batches, whitening, and files that are decoded once."""
