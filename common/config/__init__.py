"""What was asked for: options, command lines, checks."""
