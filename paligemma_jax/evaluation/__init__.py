"""What the evaluate door does, and training on the way: predictions, scores, their report."""
