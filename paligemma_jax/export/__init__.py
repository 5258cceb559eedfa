"""What the convert door does: weights and data sets into other formats."""
