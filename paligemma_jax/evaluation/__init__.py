"""The evaluate door's room: predictions, scores and their report."""
