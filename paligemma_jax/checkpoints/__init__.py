"""Weights and training states on disk: formats, names, checksums."""
