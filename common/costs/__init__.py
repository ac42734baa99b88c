"""What a run takes, before it starts: FLOPs, time and memory."""
