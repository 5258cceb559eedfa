"""The process that a door runs in: its arguments, progress, errors, signals, caches."""
