"""Process and machine: errors, files, seeds, signals, devices, several processes, the scripts as commands."""
