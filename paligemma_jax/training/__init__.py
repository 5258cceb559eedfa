"""Optimizer, step and loop: trains any apply function."""
