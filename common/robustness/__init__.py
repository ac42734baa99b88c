"""How networks trained on a synthetic set stand up to shifted test images."""
