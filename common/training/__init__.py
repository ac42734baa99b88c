"""Every network that is trained and tested: evaluations, coresets, experts, robustness."""
