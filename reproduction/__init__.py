"""The published tables, cell by cell: which cells there are, how to run them, and the results."""
