"""FreD: dataset distillation in the frequency domain. See the README for the house at a glance."""
