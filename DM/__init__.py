"""Distribution matching."""
