"""The page of all synthetic sets of a folder, beside real images in files of the same bytes."""
