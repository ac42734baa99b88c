"""What the code needs of the process and the machine: errors, files, seeds, signals, devices, ranks and scripts."""
