"""A run of training: its folder, its state, its length, and what it logs."""
