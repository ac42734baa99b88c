"""What a terminal shows of a command beside its result."""
