"""Files on a disk: written whole or not at all, free space, locks, the names in a run's folder."""
