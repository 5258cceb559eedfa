"""Weights and runs on disk, and where to fetch them."""
