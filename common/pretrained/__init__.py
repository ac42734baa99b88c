"""Synthetic sets made by others: download, convert, check and share them."""
