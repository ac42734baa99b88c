"""What is minimised: distribution, gradient and trajectory matching, and the augmentation that both sides share."""
