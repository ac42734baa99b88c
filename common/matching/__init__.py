"""The losses: distribution, gradient and trajectory matching, and the augmentation of real and synthetic images."""
