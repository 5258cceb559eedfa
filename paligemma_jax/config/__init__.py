"""Settings: the one place where defaults are written."""
