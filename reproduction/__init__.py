"""The published tables, cell by cell: what they are, how each is run, on one machine or many, and what came of it."""
