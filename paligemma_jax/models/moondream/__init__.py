"""Moondream2: the vision tower, the language model, and the two as one."""
