"""Coefficients as bytes: orthonormal planes, rounding, code lengths, integer tables and the entropy coder."""
