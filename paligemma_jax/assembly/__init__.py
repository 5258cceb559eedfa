"""Settings in, everything a door needs out."""
