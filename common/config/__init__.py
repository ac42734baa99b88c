"""The options of every command, how command lines are parsed into them, and the checks of their values."""
