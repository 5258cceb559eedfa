"""Data sets of other tools, read as examples: one file per tool, the table of them in `formats`."""
