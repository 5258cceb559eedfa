"""How messages word things: the nearest known name, counts and sizes."""
