"""What is shown: pictures, voxels, pages, and the record of a run that they are drawn from."""
