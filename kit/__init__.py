"""What is worth measuring on a GPU, in stages; gpu.py is its command."""
