"""Expert networks for trajectory matching: trained, kept in folders, read."""
