"""Synthetic sets that others made: fetch, convert, check, share."""
