"""Handles images as tensors: decodes image files once, normalises batches, and whitens images."""
