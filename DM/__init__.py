"""Distribution matching (DM): the scripts that distil and evaluate."""
